"""Tasks with questions of their own: BIG-bench's, and files of questions; lm-eval reads them from generated files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tangram.errors import TangramError
from tangram.files import write_text

BIG_BENCH_PROMPT = "Q: {{input}}\nA:"  # a space and the answer follow
ANSWER_TOKENS = 64  # at most, of an answer in the model's own words


@dataclass(frozen=True)
class Question:
    """A question with exactly one right choice, whose index is ``label``; the model writes the only choice itself."""

    input: str
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Benchmark:
    """A task to evaluate: questions, or a task of lm-eval.

    Attributes:
        questions: the questions; empty for a task of lm-eval.
        prompt: template of the text before an answer, with the field `input`.
        source: name of lm-eval's task, group or tag, or path of its YAML file; None with questions.
        num_fewshot: solved examples before each question; None for what the task says.
        metric: the metric that counts; None for the first one.
    """

    questions: tuple[Question, ...] = ()
    prompt: str = BIG_BENCH_PROMPT
    source: str | None = None
    num_fewshot: int | None = None
    metric: str | None = None


def parse_task(name: str, content: bytes) -> list[Question]:
    """Return the questions of a BIG-bench `task.json` that have exactly one right choice.

    Raises:
        TangramError: the task has no multiple-choice question with exactly one right choice.
    """
    questions = []
    for example in json.loads(content).get("examples", []):
        scores = example.get("target_scores", {})
        right = [index for index, score in enumerate(scores.values()) if score == 1]
        if len(right) == 1 and len(scores) > 1:
            questions.append(Question(example["input"], tuple(scores), right[0]))
    if not questions:
        raise TangramError(f"config.evaluation.tasks: '{name}' is not multiple choice; choose a task that is")
    return questions


def read_tasks(archive: str | Path, names: Sequence[str]) -> dict[str, list[Question]]:
    """Read tasks by folder name from BIG-bench's sdist, those that it has; unpack only these members.

    Raises:
        TangramError: a task is not multiple choice.
    """
    from tangram.archives import read_members

    members = {f"benchmark_tasks/{name}/task.json": name for name in names}
    questions = {}
    for path, content in read_members(archive, [f"*/{member}" for member in members], required=False):
        name = next(name for member, name in members.items() if path.endswith(f"/{member}"))
        questions[name] = parse_task(name, content)
    return {name: questions[name] for name in names if name in questions}


def save_tasks(tasks: Mapping[str, Benchmark], path: str | Path) -> None:
    """Write tasks as JSON; see `load_tasks`."""
    content = {name: asdict(task) for name, task in tasks.items()}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def load_tasks(path: str | Path) -> dict[str, Benchmark]:
    """Read what `save_tasks` wrote."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    return {name: Benchmark(**{**task, "questions": _questions(task["questions"])}) for name, task in content.items()}


def _questions(entries: Sequence[Mapping[str, Any]]) -> tuple[Question, ...]:
    return tuple(Question(entry["input"], tuple(entry["choices"]), entry["label"]) for entry in entries)


def file_stem(name: str) -> str:
    """Return the name of a task in lm-eval, which is that of its files."""
    return name.replace("/", "_")


def write_tasks(tasks: Mapping[str, Benchmark], folder: str | Path) -> None:
    """Write the tasks that have questions for lm-eval: a YAML file with the prompt, and the questions as JSON lines."""
    folder = Path(folder).absolute()
    for name, task in tasks.items():
        if not task.questions:
            continue
        lines = [json.dumps({"input": q.input, "choices": q.choices, "label": q.label}) for q in task.questions]
        stem = file_stem(name)
        write_text(folder / f"{stem}.jsonl", "\n".join(lines) + "\n")
        content = {
            "task": stem,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(folder / f"{stem}.jsonl")},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            "fewshot_split": "test",  # lm-eval leaves out the question itself
            "doc_to_text": task.prompt,
            **(_CHOICE if len(task.questions[0].choices) > 1 else _WRITTEN),
        }
        write_text(folder / f"{stem}.yaml", yaml.safe_dump(content, sort_keys=False))


_CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [{"metric": metric, "aggregation": "mean"} for metric in ("acc", "acc_norm")],
}
_WRITTEN = {
    "output_type": "generate_until",
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": ANSWER_TOKENS},
    "filter_list": [{"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
    "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "ignore_case": True, "ignore_punctuation": True},
    ],
}
