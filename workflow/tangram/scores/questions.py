"""Questions for scores by downstream accuracy: the train halves of tasks; evaluation keeps the test halves.

The hash of a question's text says its half, so that the same question in two tasks or files is in one half. A score by
accuracy sees train halves only, and `without_train_half` takes them out of the tasks that models are evaluated on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tangram.config import Evaluation, PackageFile, ScoreTasks
from tangram.errors import TangramError
from tangram.evaluation.tasks import Benchmark, Question
from tangram.files import write_text

WHERE = "config.scores.tasks.names"


@dataclass(frozen=True)
class Asked:
    """A question as text: the prompt, the choices with the space before each, and the index of the right one."""

    task: str
    prompt: str
    choices: tuple[str, ...]
    label: int


def _hash(question: Question) -> str:
    return hashlib.sha256(" ".join(question.input.split()).encode("utf-8", errors="surrogatepass")).hexdigest()


def in_train_half(question: Question) -> bool:
    """Return whether a question may be used for scores; else models are evaluated on it."""
    return int(_hash(question)[0], 16) % 2 == 0


def tasks_of(names: Iterable[str], archive: PackageFile | None) -> dict[str, Benchmark]:
    """Return the tasks of `scores.tasks.names`, with all their questions.

    Raises:
        TangramError: a task does not exist, is none of `evaluation.task_archive` or a JSONL file, or has no choices.
    """
    from tangram.evaluation.benchmarks import resolve

    try:
        tasks = resolve(Evaluation(tasks=tuple(names), task_archive=archive))
    except TangramError as error:
        raise TangramError(str(error).replace("config.evaluation.tasks", WHERE)) from error
    for name, task in tasks.items():
        if not task.questions:
            raise TangramError(
                f"{WHERE}: '{name}' is no task of evaluation.task_archive; name one of these, or a .jsonl file"
            )
        if any(len(question.choices) < 2 for question in task.questions):
            raise TangramError(f"{WHERE}: the answers of '{name}' are written; name a task with choices")
    return tasks


def train_questions(section: ScoreTasks, archive: PackageFile | None) -> list[Asked]:
    """Return the questions that scores use: of every task's train half the same number, in the order of their hashes.

    Raises:
        TangramError: see `tasks_of`; or a train half is empty, or there are fewer questions than tasks.
    """
    tasks = tasks_of(section.names, archive)
    share = section.questions // len(tasks)
    if not share:
        raise TangramError(
            f"config.scores.tasks.questions: {section.questions} is less than one for each of {len(tasks)} tasks; "
            "raise it"
        )
    asked = []
    for name, task in tasks.items():
        half = sorted(filter(in_train_half, task.questions), key=_hash)
        if not half:
            raise TangramError(f"{WHERE}: '{name}' has too few questions to be halved; leave it out")
        for question in half[:share]:
            prompt = task.prompt.replace("{{input}}", question.input)
            asked.append(Asked(name, prompt, tuple(f" {choice}" for choice in question.choices), question.label))
    return asked


def without_train_half(tasks: Mapping[str, Benchmark], scored: Mapping[str, Benchmark]) -> dict[str, Benchmark]:
    """Return tasks without the questions that are in the train half of a task for scores.

    Args:
        tasks: tasks to evaluate; those of lm-eval stay as they are.
        scored: tasks for scores, with all their questions.

    Raises:
        TangramError: no question of a task remains.
    """
    train = {_hash(question) for task in scored.values() for question in task.questions if in_train_half(question)}
    kept = {}
    for name, task in tasks.items():
        questions = tuple(question for question in task.questions if _hash(question) not in train)
        if task.questions and not questions:
            raise TangramError(f"config.evaluation.tasks: scores use all questions of '{name}'; leave it out")
        kept[name] = replace(task, questions=questions)
    return kept


def save_questions(questions: Iterable[Asked], path: str | Path) -> None:
    """Write questions as JSON; see `load_questions`."""
    write_text(path, json.dumps([asdict(question) for question in questions], indent=1, ensure_ascii=False) + "\n")


def load_questions(path: str | Path) -> list[Asked]:
    """Read what `save_questions` wrote."""
    entries = json.loads(Path(path).read_text(encoding="utf-8"))
    return [Asked(**{**entry, "choices": tuple(entry["choices"])}) for entry in entries]
