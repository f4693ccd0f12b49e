"""Answer tasks with lm-eval, and keep the result of every question.

Two models answer the same questions, so the relevant number is their difference, paired by question, whose standard
error is smaller than that of an accuracy.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tangram.errors import TangramError
from tangram.evaluation.tasks import Benchmark, file_stem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FEWSHOT_SEED = 1234  # of the draw of examples: lm-eval's own, so that figures compare with published ones
CHANCE = "chance"  # metric: accuracy of random guessing by `acc`; `chance:METRIC` if another metric counts
_UNITS = {"word_perplexity": "words", "byte_perplexity": "bytes"}

Outcomes = dict[str, torch.Tensor]
"""One model's results on one task by metric, each ``(questions,)``; the last is the chance of the metric that counts.

A task of rolling log-likelihoods has `nats`, and `words` or `bytes`, of every text instead.
"""


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Convert the exceptions of lm-eval and `datasets`, which have no common base class."""
    try:
        yield
    except TangramError:
        raise
    except Exception as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        offline = any(os.environ.get(key, "0") not in ("", "0") for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
        state = "HF_HUB_OFFLINE is set" if offline else "without network, or with HF_HUB_OFFLINE set"
        raise TangramError(
            f"config.evaluation.tasks: '{name}' cannot be loaded ({type(error).__name__}: {reason}); {state}, its "
            "dataset must be in the cache of `datasets`: load it once with network, or name a file of questions"
        ) from error


def _quiet() -> None:
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


@functools.cache
def _own_tasks() -> Any:
    """Return lm-eval's index of its own tasks, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def load(name: str, task: Benchmark, folder: str | Path) -> list[Any]:
    """Return the tasks of lm-eval behind a task: one, or the leaves of a group or tag.

    Args:
        name: the task's name.
        task: the task.
        folder: where `write_tasks` wrote the tasks that have questions.

    Raises:
        TangramError: lm-eval does not know the task, its dataset is missing, or its settings do not fit.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    _quiet()
    path = task.source or str(Path(folder).absolute() / f"{file_stem(name)}.yaml")
    with _loading(name):
        if path.endswith(".yaml"):
            content = load_yaml(path, resolve_func=False)
            manager = TaskManager(include_path=str(Path(path).parent), include_defaults=False)
            leaves = manager.load([content.get("group") or content["task"]])
        elif path not in _own_tasks().task_index:
            raise TangramError(f"config.evaluation.tasks: {_unknown(path, list(_own_tasks().all_tasks))}")
        else:
            leaves = _own_tasks().load([path])
    tasks = list(leaves["tasks"].values())
    for leaf in tasks:
        _prepare(name, leaf, task)
    return tasks


def _unknown(name: str, valid: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return (
        f"neither task_archive nor lm-eval has '{name}'{hint} (BIG-bench's tasks need task_archive; a path begins with "
        "/ or ./, or ends in /, .jsonl or .yaml)"
    )


def _prepare(name: str, leaf: Any, task: Benchmark) -> None:
    """Set the number of examples and the seed of their draw; check what would fail after long work."""
    where = f"config.evaluation.tasks: '{name}'"
    if getattr(leaf, "UNSAFE_CODE", False) or getattr(leaf, "MULTIMODAL", False):
        raise TangramError(f"{where} runs generated code or needs images or sound, which is refused; leave it out")
    preset, count = leaf.get_config("num_fewshot"), task.num_fewshot
    if count and preset == 0 and not task.questions:
        raise TangramError(f"{where}: lm-eval fixes its prompt without examples; leave num_fewshot out")
    leaf.set_config("num_fewshot", count if count is not None else preset or 0)
    leaf.set_fewshot_seed(FEWSHOT_SEED)
    if count and len(getattr(getattr(leaf, "sampler", None), "df", ())) <= count:
        raise TangramError(f"{where} has too few examples for num_fewshot: {count}; lower it")
    if task.metric and task.metric.partition(",")[0] not in leaf.aggregation():
        raise TangramError(f"{where} has no metric '{task.metric}'; it has {', '.join(leaf.aggregation())}")


def answer_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    tasks: Mapping[str, Benchmark],
    limit: int | None,
    label: str,
) -> dict[str, Outcomes]:
    """Evaluate a model on tasks with lm-eval.

    Args:
        model: parent or child, loaded.
        tokenizer: the model's tokenizer.
        folder: folder of the task files that `write_tasks` wrote.
        tasks: the tasks by name.
        limit: maximum number of questions per task, or per task of a group; None for all.
        label: label of the progress bar and of errors.

    Raises:
        TangramError: a task cannot be loaded, or the model's outputs are not finite.
    """
    from lm_eval.evaluator import evaluate

    from tangram.evaluation.shared_prefix import SharedPrefixLM

    leaves = {name: load(name, task, folder) for name, task in tasks.items()}
    keys = {(name, i): leaf for name, members in leaves.items() for i, leaf in enumerate(members)}
    loaded = {"tasks": {f"{name}::{i}": leaf for (name, i), leaf in keys.items()}, "groups": {}, "group_map": {}}
    # No bootstrap: the report computes standard errors from the samples, as lm-eval has no paired ones.
    results = evaluate(SharedPrefixLM(model, tokenizer, label), loaded, limit=limit, bootstrap_iters=0)
    outcomes = {}
    for name, members in leaves.items():
        parts = [_outcomes(leaf, results["samples"][f"{name}::{i}"]) for i, leaf in enumerate(members)]
        outcomes[name] = _joined(name, parts, tasks[name].metric)
    return outcomes


def _outcomes(leaf: Any, samples: Sequence[Mapping[str, Any]]) -> Outcomes:
    """Return the results of one task of lm-eval: its metrics that are means over questions, larger being better."""
    from lm_eval.api.registry import get_aggregation

    mean = get_aggregation("mean")
    aggregation, better = leaf.aggregation(), leaf.higher_is_better()
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    outcomes: Outcomes = {}
    for name in filters:
        part = sorted((s for s in samples if s["filter"] == name), key=lambda sample: sample["doc_id"])
        for metric in part[0]["metrics"]:
            values = [sample[metric] for sample in part]
            # The first filter is the task's own; lm-eval writes those of others as metric,filter.
            key = metric if name == filters[0] else f"{metric},{name}"
            if leaf.OUTPUT_TYPE == "loglikelihood_rolling" and metric in _UNITS:
                outcomes["nats"] = torch.tensor([-value for value, _ in values])
                outcomes[_UNITS[metric]] = torch.tensor([float(count) for _, count in values])
                continue
            averaged = aggregation.get(metric, mean) is mean and better.get(metric, True)
            if averaged and all(isinstance(value, Real) for value in values):
                outcomes[key] = torch.tensor([float(value) for value in values])
    if outcomes and "nats" not in outcomes:
        part = sorted((s for s in samples if s["filter"] == filters[0]), key=lambda sample: sample["doc_id"])
        outcomes[CHANCE] = torch.tensor([_chance(leaf, sample) for sample in part])
    return outcomes


def _chance(leaf: Any, sample: Mapping[str, Any]) -> float:
    """Return the accuracy of random guessing at a question: 0 if the model writes the answer."""
    if leaf.OUTPUT_TYPE != "multiple_choice":
        return 0.0
    choices = leaf.doc_to_choice(sample["doc"]) if hasattr(leaf, "doc_to_choice") else sample["doc"]["choices"]
    right = len(sample["target"]) if isinstance(sample["target"], list) else 1
    return right / len(choices)


def _joined(name: str, parts: Sequence[Outcomes], counts: str | None) -> Outcomes:
    """Return the results of a task, of all questions of a group, with the chance of the metric that counts."""
    common = [metric for metric in parts[0] if all(metric in part for part in parts)]
    metrics = [metric for metric in common if metric != CHANCE]
    if not metrics or (counts and counts not in metrics):
        reason = f"no metric '{counts}'" if counts else "no metric that is a mean over questions"
        raise TangramError(f"config.evaluation.tasks: '{name}' has {reason}; leave it out, or name another metric")
    outcomes = {metric: torch.cat([part[metric] for part in parts]) for metric in common}
    counts = counts or metrics[0]
    if CHANCE in outcomes and counts != "acc":
        outcomes[f"{CHANCE}:{counts}"] = outcomes.pop(CHANCE)
    return outcomes


def answer_rows(model: str, answers: Mapping[str, Outcomes]) -> list[dict[str, Any]]:
    """Return the rows of `tables.SAMPLES` for one model: every metric of every question."""
    return [
        {"model": model, "task": task, "sample": sample, "metric": metric, "value": value}
        for task, outcomes in answers.items()
        for metric, values in outcomes.items()
        for sample, value in enumerate(values.double().tolist())
    ]
