"""Statistics of the report: comparison of a child with the baseline at the child's speed, and rank correlation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tangram.config import LAYERS_DROPPED
from tangram.report.data import BEST, PARENT_KEY, Estimate, Key, Results

VERDICTS = {"child": "Tangram", "baseline": "layers dropped", "tie": "tie", "": "–"}  # for people  # noqa: RUF001
CONFIDENCE = 1.96  # standard errors of a two-sided 95 % interval


@dataclass(frozen=True)
class Comparison:
    """A child and the baseline at the child's measured speed.

    Nothing is extrapolated: a child faster than every baseline is compared with the fastest one, whose lower speed is
    ``slower``. This favors the baseline, so that only the child can win. ``baseline`` is None if no baseline was
    measured. ``verdict`` is ``'child'``, ``'baseline'``, ``'tie'`` (less than 1.96 standard errors apart), or ``''``.
    """

    key: Key
    speed: Estimate
    child: Estimate
    baseline: Estimate | None
    difference: Estimate | None
    verdict: str
    slower: Estimate | None = None


def interpolate(points: Sequence[tuple[Estimate, Estimate]], speed: Estimate) -> Estimate | None:
    """Interpolate (speed, value) points linearly at ``speed``; None outside their range.

    The standard error propagates, to first order and for independent errors, those of both neighbors' values and,
    through the slope, of the three speeds; a missing standard error counts as 0.
    """
    ordered = sorted(points, key=lambda point: point[0].value)
    for (left, low), (right, high) in itertools.pairwise(ordered):
        if left.value <= speed.value <= right.value and left.value < right.value:
            share = (speed.value - left.value) / (right.value - left.value)
            slope = (high.value - low.value) / (right.value - left.value)
            parts = [
                factor * term.standard_error
                for factor, term in (
                    (1 - share, low),
                    (share, high),
                    ((1 - share) * slope, left),
                    (share * slope, right),
                    (slope, speed),
                )
                if factor and term.standard_error  # a term of factor 0 may have an infinite error
            ]
            return Estimate((1 - share) * low.value + share * high.value, math.hypot(*parts))
    return None


def compare(results: Results, metric: str, model: str) -> list[Comparison]:
    """Compare the best child of every target with the layers-dropped baseline, by a held-out loss (lower is better).

    The parent, without dropped layers and at speed 1, is the baseline's first point.

    Args:
        results: the run.
        metric: ``'kl'`` or ``'lm_loss'``, nats per token.
        model: ``'child'`` (before finetuning) or ``'finetuned'``.
    """

    def measured(key: Key) -> tuple[Estimate, Estimate] | None:
        speed, value = results.speedup(key), results.heldout(key, metric)
        return (speed, value) if speed and value else None

    keys = [PARENT_KEY, *(Key(target, LAYERS_DROPPED, model) for target in results.settings.targets)]
    baseline = sorted((point for point in map(measured, keys) if point), key=lambda point: point[0].value)
    comparisons = []
    for target in results.settings.targets:
        key = Key(target, BEST, model)
        point = measured(key)
        if point is None:
            continue
        speed, child = point
        # A baseline needs a point besides the parent.
        other = interpolate(baseline, speed) if len(baseline) > 1 else None
        slower = None
        if len(baseline) > 1 and speed.value > baseline[-1][0].value:
            slower, other = baseline[-1]
        difference = None
        verdict = ""
        if other is not None:
            error = math.hypot(child.standard_error or 0, other.standard_error or 0)
            difference = Estimate(child.value - other.value, error)
            verdict = decide(difference)
            if slower and verdict != "child":
                verdict = ""
        comparisons.append(Comparison(key, speed, child, other, difference, verdict, slower))
    return comparisons


def decide(difference: Estimate) -> str:
    """Return the winner of a loss difference child - baseline: ``'child'``, ``'baseline'`` or ``'tie'``."""
    if not abs(difference.value) > CONFIDENCE * (difference.standard_error or 0):  # true for a NaN error, too
        return "tie"
    return "child" if difference.value < 0 else "baseline"


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, with mean ranks for ties; None if it is undefined."""
    ranks = [pd.Series(values, dtype=float).rank().to_numpy(dtype=np.float64) for values in (first, second)]
    if len(ranks[0]) < 3 or any(np.ptp(values) == 0 for values in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


@dataclass(frozen=True)
class Scored:
    """One child's sum of replace-1-block scores and its true KL before finetuning, both in nats per token."""

    target: str
    solution: str
    score: float
    kl: Estimate


def scored_children(results: Results) -> list[Scored]:
    """Return every child with both a sum of scores and a measured KL."""
    children = []
    for (target, solution), architecture in results.architectures.items():
        score, kl = results.sum_of_scores(architecture), results.heldout(Key(target, solution, "child"), "kl")
        if score is not None and kl is not None:
            children.append(Scored(target, solution, score, kl))
    return children
