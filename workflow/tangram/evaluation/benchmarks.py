"""Resolve the entries of `evaluation.tasks`: BIG-bench, files and folders of tasks, and lm-eval's tasks by name.

A path is known by its form. A name is a task of `task_archive` if that has it, else one of lm-eval.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tangram.archives import fetch_archive
from tangram.config import Evaluation, Task
from tangram.errors import TangramError
from tangram.evaluation.tasks import Benchmark, Question, read_tasks

# The keys of a line's question, with lm-eval's prompt for ARC and PIQA, or none for a text to continue.
PROMPTS = {
    "question": "Question: {{input}}\nAnswer:",
    "goal": "Question: {{input}}\nAnswer:",
    "context": "{{input}}",
}
RESERVED = ("mean", "heldout")  # names in the report's tables
_SCHEMA = (
    f'a line is {{"question": text, "choices": [texts], "label": index}}, or "answer": text in place of choices and '
    f"label; the question's key is one of {', '.join(PROMPTS)}"
)


def resolve(section: Evaluation) -> dict[str, Benchmark]:
    """Return the tasks of a config by name, in the config's order; none of lm-eval's is loaded yet.

    Raises:
        TangramError: a file or name does not exist, a file does not fit the schema, or two tasks have one name.
    """
    named = [task.name for task in section.all_tasks if not task.is_path]
    archived = {}
    if named and section.task_archive is not None:
        archived = read_tasks(fetch_archive(section.task_archive), named)
    tasks: dict[str, Benchmark] = {}
    for entry in section.all_tasks:
        for name, task in _tasks_of(entry, archived).items():
            label = name if entry.num_fewshot is None else f"{name} ({entry.num_fewshot}-shot)"
            if label in tasks or label in RESERVED:
                reason = "appears twice" if label in tasks else "is the name of a row of the report"
                raise TangramError(f"config.evaluation.tasks: '{label}' {reason}; rename one")
            tasks[label] = Benchmark(task.questions, task.prompt, task.source, entry.num_fewshot, entry.metric)
    return tasks


def _tasks_of(entry: Task, archived: Mapping[str, list[Question]]) -> dict[str, Benchmark]:
    """Return the tasks of one entry by name, without the entry's settings."""
    if not entry.is_path:
        if entry.name in archived:
            return {entry.name: Benchmark(tuple(archived[entry.name]))}
        return {entry.name: Benchmark(source=entry.name)}
    path = Path(entry.name).expanduser()
    return dict(_of_file(file) for file in task_files(path))


def task_files(path: Path) -> list[Path]:
    """Return the files of tasks at a path: the file, or a folder's YAML files of tasks, else its JSONL files.

    Raises:
        TangramError: there is none.
    """
    if path.is_file():
        return [path]
    # JSONL files beside YAML files are the data of these.
    yamls = [file for file in sorted(path.glob("*.yaml")) if _task_name(file)]
    if files := yamls or sorted(path.glob("*.jsonl")):
        return files
    problem = "holds no .yaml or .jsonl file of a task" if path.is_dir() else "does not exist"
    raise TangramError(f"config.evaluation.tasks: {path} {problem}; correct the path")


def _task_name(path: Path) -> str:
    """Return the name of the task or group that a YAML file of lm-eval defines, or nothing if it is a template."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        content = load_yaml(path, resolve_func=False)
    except Exception as error:  # of YAML, or of an included file
        reason = str(error).strip().split("\n")[0]
        raise TangramError(f"config.evaluation.tasks: {path} cannot be read ({reason}); correct the file") from error
    name = content.get("group") or content.get("task") if isinstance(content, dict) else None
    return name if isinstance(name, str) else ""


def _of_file(path: Path) -> tuple[str, Benchmark]:
    """Return the task of one file with its name."""
    if path.suffix == ".jsonl":
        return path.stem, read_questions(path)
    name = _task_name(path) if path.suffix == ".yaml" else ""
    if not name:
        raise TangramError(f"config.evaluation.tasks: {path} defines no task of lm-eval; correct the path")
    return name, Benchmark(source=str(path.absolute()))


def read_questions(path: Path) -> Benchmark:
    """Return the task in a JSONL file of questions.

    Raises:
        TangramError: a line does not fit the schema, or the lines differ in it.
    """
    questions, forms = [], set()
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            key, question = _question(json.loads(line))
        except (ValueError, TypeError, KeyError, StopIteration) as error:
            raise TangramError(
                f"config.evaluation.tasks: {path}:{number} does not fit ({error or 'no question'}): {_SCHEMA}"
            ) from error
        questions.append(question)
        forms.add((PROMPTS[key], len(question.choices) > 1))
    if len(forms) != 1:
        problem = "mixes forms of questions" if forms else "has no question"
        raise TangramError(f"config.evaluation.tasks: {path} {problem}: {_SCHEMA}")
    return Benchmark(tuple(questions), next(iter(forms))[0])


def _question(line: Mapping[str, Any]) -> tuple[str, Question]:
    """Return the key of a line's question, and the question."""
    key = next(key for key in PROMPTS if key in line)
    if "answer" in line and "choices" not in line:
        return key, Question(str(line[key]), (str(line["answer"]),), 0)
    choices, label = line["choices"], line["label"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError("choices must be two texts or more")
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(choices):
        raise ValueError(f"label {label!r} is no index of the choices")
    return key, Question(str(line[key]), tuple(map(str, choices)), label)
