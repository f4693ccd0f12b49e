"""BIG-bench multiple-choice tasks through lm-eval, offline, with task files that are made here.

A few hundred questions give standard errors of several points. Two models answer the same questions, so their
difference is paired, question by question: that is the number to look at, with its own, smaller standard error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from tangram.blocks.base import PARENT
from tangram.errors import TangramError
from tangram.files import write_text
from tangram.metrics import standard_error_by_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPT = "Q: {{input}}\nA:"  # the choice follows after a space
MEAN = "mean"  # the task under which the mean over tasks stands


@dataclass(frozen=True)
class Question:
    """A question with exactly one right choice; ``label`` is its index."""

    input: str
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Outcomes:
    """One model's answers to one task's questions, each ``(questions,)``.

    Attributes:
        acc: 1 where the right choice has the largest log-likelihood, else 0.
        acc_norm: the same for the log-likelihood per character.
        chance: probability of guessing right.
    """

    acc: torch.Tensor
    acc_norm: torch.Tensor
    chance: torch.Tensor


def parse_task(name: str, content: bytes) -> list[Question]:
    """Return the questions of a BIG-bench `task.json` that have exactly one right choice.

    Raises:
        TangramError: the task is not multiple choice, or no question is left.
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
    """Read tasks by their folders' names from BIG-bench's sdist; only these members are unpacked.

    Raises:
        TangramError: a task is not there, or is not multiple choice.
    """
    from tangram.archives import read_members

    members = {f"benchmark_tasks/{name}/task.json": name for name in names}
    found = {}
    for path, content in read_members(archive, [f"*/{member}" for member in members]):
        name = next(name for member, name in members.items() if path.endswith(f"/{member}"))
        found[name] = parse_task(name, content)
    return {name: found[name] for name in names}


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
    """Let lm-eval put the tasks to a model.

    Args:
        model: parent or child, loaded.
        tokenizer: its tokenizer.
        folder: where `write_tasks` wrote the tasks.
        names: tasks.
        limit: questions per task; all without.
        label: what to show beside the progress bar.

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
    # Standard errors are ours, from the samples: lm-eval's bootstrap knows nothing of pairs.
    found = evaluate(SharedPrefixLM(model, tokenizer, label), loaded, limit=limit, bootstrap_iters=0)
    outcomes = {}
    for name, stem in stems.items():
        samples = sorted(found["samples"][stem], key=lambda sample: sample["doc_id"])
        outcomes[name] = Outcomes(
            acc=torch.tensor([float(sample["acc"]) for sample in samples]),
            acc_norm=torch.tensor([float(sample["acc_norm"]) for sample in samples]),
            chance=torch.tensor([1 / len(sample["doc"]["choices"]) for sample in samples]),
        )
    return outcomes


def _mean(values: torch.Tensor) -> tuple[float, float]:
    """Return mean and standard error over questions."""
    return standard_error_by_sequence(values[:, None])


def _mean_over_tasks(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean of independent (mean, standard error) pairs and its standard error."""
    means, errors = zip(*values, strict=True)
    return sum(means) / len(means), math.sqrt(sum(error**2 for error in errors)) / len(errors)


def task_rows(answers: Mapping[str, Mapping[str, Outcomes]]) -> list[dict[str, Any]]:
    """Return the rows of `tables.EVALUATION` for the answers of some models, by model and task.

    Per task: `acc`, `acc_norm`, `chance`, and for every model but the parent `acc_difference`, paired with the
    parent's answers. Under the task `mean`: `acc_above_chance`, the mean over tasks of
    ``(acc - chance) / (1 - chance)``, and its paired difference `acc_above_chance_difference`. The questions are
    given: standard errors are over them, and `chance` has none.
    """
    rows: list[dict[str, Any]] = []

    def add(model: str, task: str, metric: str, value: float, error: float | None, n: int) -> None:
        rows.append({"model": model, "task": task, "metric": metric, "value": value, "standard_error": error, "n": n})

    for model, tasks in answers.items():
        paired = answers.get(PARENT) if model != PARENT else None
        above, differences = [], []
        for task, own in tasks.items():
            n, chance = len(own.acc), own.chance.double().mean().item()
            add(model, task, "acc", *_mean(own.acc), n)
            add(model, task, "acc_norm", *_mean(own.acc_norm), n)
            add(model, task, "chance", chance, None, n)
            above.append(_mean((own.acc.double() - chance) / (1 - chance)))
            if paired:
                difference = own.acc.double() - paired[task].acc.double()
                add(model, task, "acc_difference", *_mean(difference), n)
                differences.append(_mean(difference / (1 - chance)))
        questions = sum(len(own.acc) for own in tasks.values())
        add(model, MEAN, "acc_above_chance", *_mean_over_tasks(above), questions)
        if paired:
            add(model, MEAN, "acc_above_chance_difference", *_mean_over_tasks(differences), questions)
    return rows
