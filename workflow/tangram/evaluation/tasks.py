"""BIG-bench multiple-choice tasks, evaluated offline by lm-eval with generated task files.

The result of every question is stored. Two models answer the same questions, so the relevant number is their
difference, paired by question, whose standard error is smaller than that of an accuracy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from tangram.errors import TangramError
from tangram.files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPT = "Q: {{input}}\nA:"  # a space and the choice follow


@dataclass(frozen=True)
class Question:
    """A question with exactly one right choice; ``label`` is its index."""

    input: str
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Outcomes:
    """One model's results on the questions of one task, each ``(questions,)``.

    Attributes:
        acc: 1 if the right choice has the largest log-likelihood, else 0.
        acc_norm: 1 if the right choice has the largest log-likelihood per character, else 0.
        chance: accuracy of random guessing.
    """

    acc: torch.Tensor
    acc_norm: torch.Tensor
    chance: torch.Tensor


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
    """Read tasks by folder name from BIG-bench's sdist; unpack only these members.

    Raises:
        TangramError: the archive lacks a task, or a task is not multiple choice.
    """
    from tangram.archives import read_members

    members = {f"benchmark_tasks/{name}/task.json": name for name in names}
    questions = {}
    for path, content in read_members(archive, [f"*/{member}" for member in members]):
        name = next(name for member, name in members.items() if path.endswith(f"/{member}"))
        questions[name] = parse_task(name, content)
    return {name: questions[name] for name in names}


def save_questions(tasks: Mapping[str, Sequence[Question]], path: str | Path) -> None:
    """Write the questions of tasks as JSON; see `load_questions`."""
    content = {name: [asdict(question) for question in questions] for name, questions in tasks.items()}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def load_questions(path: str | Path) -> dict[str, list[Question]]:
    """Read what `save_questions` wrote."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    return {
        name: [Question(entry["input"], tuple(entry["choices"]), entry["label"]) for entry in entries]
        for name, entries in content.items()
    }


def write_tasks(tasks: Mapping[str, Sequence[Question]], folder: str | Path) -> None:
    """Write each task for lm-eval: a YAML file with the prompt, and the questions as JSON lines."""
    folder = Path(folder).absolute()
    for name, questions in tasks.items():
        lines = [json.dumps({"input": q.input, "choices": q.choices, "label": q.label}) for q in questions]
        stem = name.replace("/", "_")
        write_text(folder / f"{stem}.jsonl", "\n".join(lines) + "\n")
        task = {
            "task": stem,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(folder / f"{stem}.jsonl")},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            "output_type": "multiple_choice",
            "num_fewshot": 0,
            "doc_to_text": PROMPT,
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "metric_list": [{"metric": metric, "aggregation": "mean"} for metric in ("acc", "acc_norm")],
        }
        write_text(folder / f"{stem}.yaml", yaml.safe_dump(task, sort_keys=False))


def answer_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    names: Sequence[str],
    limit: int | None,
    label: str,
) -> dict[str, Outcomes]:
    """Evaluate a model on tasks with lm-eval.

    Args:
        model: parent or child, loaded.
        tokenizer: the model's tokenizer.
        folder: folder of the task files that `write_tasks` wrote.
        names: names of the tasks.
        limit: maximum number of questions per task; None for all.
        label: label of the progress bar and of errors.

    Raises:
        TangramError: the model's outputs are not finite.
    """
    import logging

    import datasets
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    from tangram.evaluation.shared_prefix import SharedPrefixLM

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    stems = {name: name.replace("/", "_") for name in names}
    loaded = TaskManager(include_path=str(folder), include_defaults=False).load(list(stems.values()))
    # No bootstrap: the report computes standard errors from the samples, as lm-eval has no paired ones.
    results = evaluate(SharedPrefixLM(model, tokenizer, label), loaded, limit=limit, bootstrap_iters=0)
    outcomes = {}
    for name, stem in stems.items():
        samples = sorted(results["samples"][stem], key=lambda sample: sample["doc_id"])
        outcomes[name] = Outcomes(
            acc=torch.tensor([float(sample["acc"]) for sample in samples]),
            acc_norm=torch.tensor([float(sample["acc_norm"]) for sample in samples]),
            chance=torch.tensor([1 / len(sample["doc"]["choices"]) for sample in samples]),
        )
    return outcomes


def answer_rows(model: str, answers: Mapping[str, Outcomes]) -> list[dict[str, Any]]:
    """Return the rows of `tables.SAMPLES` for one model: `acc`, `acc_norm` and `chance` of every question."""
    return [
        {"model": model, "task": task, "sample": sample, "metric": metric, "value": value}
        for task, outcomes in answers.items()
        for metric in ("acc", "acc_norm", "chance")
        for sample, value in enumerate(getattr(outcomes, metric).double().tolist())
    ]
