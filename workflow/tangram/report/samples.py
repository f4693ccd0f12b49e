"""Results by question and by sequence: means, and differences, which are paired, as all models have the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tangram.report.estimates import PARENT_KEY, Estimate, Key

MEAN = "mean"  # task name of the mean over tasks
STEP = 1e-6  # relative step of numerical derivatives

Samples = Mapping[tuple[Key, str, str], np.ndarray]  # values by (model, task, metric), in the order of samples


def by_model(frame: pd.DataFrame) -> dict[tuple[Key, str, str], np.ndarray]:
    """Return the values of a SAMPLES or LONG_CONTEXT frame with columns ``target`` and ``solution``.

    The task of a long text is followed by its length, such as ``needle 256``.
    """
    if "length" in frame:
        frame = frame.assign(task=frame["task"] + " " + frame["length"].astype(str))
    names = ["target", "solution", "model", "task", "metric"]
    groups = frame.sort_values("sample", kind="stable").groupby(names, sort=False)["value"]
    samples = {}
    for name, values in groups:
        target, solution, model, task, metric = map(str, name)
        samples[Key(target, solution, model), task, metric] = values.to_numpy()
    return samples


def mean_of(values: np.ndarray) -> Estimate:
    """Return the mean of independent values and its standard error, which is infinite for a single value."""
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(float(values.mean()), float(error), len(values))


def mean_over_tasks(tasks: Iterable[np.ndarray]) -> Estimate:
    """Return the unweighted mean of the means of independent tasks and its standard error."""
    means = [mean_of(values) for values in tasks]
    error = math.sqrt(sum((mean.standard_error or 0) ** 2 for mean in means)) / len(means)
    return Estimate(sum(mean.value for mean in means) / len(means), error, sum(mean.n or 0 for mean in means))


def counted(samples: Samples, key: Key) -> dict[str, tuple[str, np.ndarray]]:
    """Return the metric that counts in each task of a model, and the chance of every question.

    The chance's name says the metric: `chance` is that of `acc`, `chance:exact_match` that of `exact_match`.
    """
    tasks = {}
    for (model, task, name), values in samples.items():
        kind, _, metric = name.partition(":")
        if model == key and kind == "chance":
            tasks[task] = (metric or "acc", values)
    return tasks


def normalized(samples: Samples, key: Key) -> dict[str, np.ndarray]:
    """Return (accuracy - chance) / (1 - chance) of every question by task, with the task's mean chance.

    The accuracy is the metric that counts in the task: the share of right answers, or of exact matches.
    """
    tasks = {}
    for task, (metric, chances) in counted(samples, key).items():
        chance = chances.mean()
        tasks[task] = (samples[key, task, metric] - chance) / (1 - chance)
    return tasks


def share_of_parent(samples: Samples, values: Mapping[str, np.ndarray]) -> Estimate | None:
    """Return a mean over tasks as a share of the parent's mean normalized accuracy, paired by question.

    The error of the ratio is the delta method's: that of the mean of ``(values - share * parent) / mean of parent``.

    Args:
        samples: the answers of all models.
        values: the numerator, for each question by task.

    Returns:
        The share, or None if the parent answers other questions or is no better than chance.
    """
    parent = normalized(samples, PARENT_KEY)
    if not values or {task: len(v) for task, v in values.items()} != {task: len(v) for task, v in parent.items()}:
        return None
    whole = mean_over_tasks(parent[task] for task in values).value
    if whole <= 0:
        return None
    share = mean_over_tasks(values.values()).value / whole
    error = mean_over_tasks((values[task] - share * parent[task]) / whole for task in values)
    return Estimate(share, error.standard_error, error.n)


def difference_on_tasks(samples: Samples, key: Key, other: Key) -> Estimate | None:
    """Return the mean normalized accuracy of ``key`` less that of ``other``, paired; None without the same tasks."""
    one, two = normalized(samples, key), normalized(samples, other)
    if not one or {task: len(v) for task, v in one.items()} != {task: len(v) for task, v in two.items()}:
        return None
    return mean_over_tasks([one[task] - two[task] for task in one])


def changed_answers(samples: Samples, key: Key) -> int | None:
    """Return the number of questions that either a model or the parent alone answers correctly; None without them."""
    metrics = {task: metric for task, (metric, _) in counted(samples, key).items()}
    answers = {task: samples[key, task, metric] for task, metric in metrics.items()}
    parent = {task: samples.get((PARENT_KEY, task, metric)) for task, metric in metrics.items()}
    if not answers or any(values is None or len(values) != len(answers[task]) for task, values in parent.items()):
        return None
    return sum(int((values != parent[task]).sum()) for task, values in answers.items())


def task_rows(samples: Samples) -> list[dict[str, Any]]:
    """Return rows of `tables.EVALUATION`, with ``target`` and ``solution``, for the answers of all models.

    Each task has its metrics, such as `acc` and `acc_norm`, and `chance`; for every model but the parent also the
    difference of the metric that counts, such as `acc_difference`, paired with the parent by question. The task `mean`
    has `acc_above_chance`, the mean over tasks of ``(accuracy - chance) / (1 - chance)`` of the metric that counts, and
    its paired difference `acc_above_chance_difference`. Standard errors are over questions; `chance` has none.
    """
    rows: list[dict[str, Any]] = []

    def add(key: Key, task: str, metric: str, value: Estimate) -> None:
        rows.append(
            {**key._asdict(), "task": task, "metric": metric}
            | {"value": value.value, "standard_error": value.standard_error, "n": value.n}
        )

    for key in dict.fromkeys(key for key, _, _ in samples):
        for task, (counts, chance) in counted(samples, key).items():
            for (model, of_task, metric), values in samples.items():
                if (model, of_task) == (key, task) and metric.partition(":")[0] != "chance":
                    add(key, task, metric, mean_of(values))
            add(key, task, "chance", Estimate(float(chance.mean()), None, len(chance)))
            parent = samples.get((PARENT_KEY, task, counts))
            if key != PARENT_KEY and parent is not None and len(parent) == len(chance):
                add(key, task, f"{counts}_difference", mean_of(samples[key, task, counts] - parent))
        add(key, MEAN, "acc_above_chance", mean_over_tasks(normalized(samples, key).values()))
        difference = difference_on_tasks(samples, key, PARENT_KEY) if key != PARENT_KEY else None
        if difference is not None:
            add(key, MEAN, "acc_above_chance_difference", difference)
    return rows


def propagate(
    function: Callable[[np.ndarray], float], terms: Sequence[Estimate], samples: Sequence[np.ndarray | None] = ()
) -> Estimate:
    """Return a function of estimates with its standard error to first order.

    Args:
        function: maps the values of ``terms`` to a value.
        terms: the estimates; a missing standard error counts as 0.
        samples: for each term its values by sequence, if it is a mean over the same sequences as others: the errors of
            such terms are correlated. None for an independent term; all are independent by default.
    """
    values = np.array([term.value for term in terms], dtype=float)
    independent, paired = [0.0], None
    for i, (term, by_sequence) in enumerate(zip(terms, samples or [None] * len(terms), strict=True)):
        step = np.zeros_like(values)
        step[i] = STEP * (abs(values[i]) or 1.0)
        slope = (function(values + step) - function(values - step)) / (2 * step[i]) if term.standard_error else 0.0
        if not slope:  # a term without a part may have an infinite error
            continue
        if by_sequence is None:
            independent.append(slope * (term.standard_error or 0))
        else:
            paired = slope * by_sequence + (0 if paired is None else paired)
    if paired is not None:
        independent.append(mean_of(paired).standard_error or 0)
    return Estimate(float(function(values)), math.hypot(*independent))
