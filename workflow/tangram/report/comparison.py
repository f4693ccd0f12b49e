"""Statistics of the report: comparisons of children with rivals, quality that tasks show, and rank correlation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tangram.config import LAYERS_DROPPED
from tangram.report.data import BEST, PARENT_KEY, UNIFORM, Estimate, Key, Results, ratio

VERDICTS = {"child": "Tangram", "baseline": "layers dropped", "tie": "tie", "": "–"}  # for people  # noqa: RUF001
RIVAL_VERDICTS = {**VERDICTS, "baseline": "uniform"}
CONFIDENCE = 1.96  # standard errors of a two-sided 95 % interval


@dataclass(frozen=True)
class Comparison:
    """A child and the baseline at the child's measured speed over `Results.best_parent`.

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


def _measured(results: Results, key: Key, metric: str) -> tuple[Estimate, Estimate] | None:
    speed, value = results.claimed_speedup(key), results.heldout(key, metric)
    return (speed, value) if speed and value else None


def _frontier(results: Results, metric: str, model: str, solution: str) -> list[tuple[Estimate, Estimate]]:
    """Return speed and loss of the best-run parent and of one solution of every target, from slow to fast."""
    keys = [results.best_parent, *(Key(target, solution, model) for target in results.settings.targets)]
    points = (_measured(results, key, metric) for key in keys)
    return sorted((point for point in points if point), key=lambda point: point[0].value)


def compare(results: Results, metric: str, model: str) -> list[Comparison]:
    """Compare the best child of every target with the layers-dropped baseline, by a held-out loss (lower is better).

    The best-run parent, without dropped layers and at speed 1, is the baseline's first point.

    Args:
        results: the run.
        metric: ``'kl'`` or ``'lm_loss'``, nats per token.
        model: ``'child'`` (before finetuning) or ``'finetuned'``.
    """
    baseline = _frontier(results, metric, model, LAYERS_DROPPED)
    comparisons = []
    for target in results.settings.targets:
        key = Key(target, BEST, model)
        point = _measured(results, key, metric)
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


@dataclass(frozen=True)
class Meeting:
    """The searched children where a rival is: their loss at its speed, or their speed at its loss.

    ``nearest`` is the place of the nearest child if none is on both sides of the rival; the verdict is then given only
    if this child or the rival is better in both. ``verdict`` is as in `Comparison`.
    """

    children: Estimate
    verdict: str
    nearest: Estimate | None = None


@dataclass(frozen=True)
class Rivalry:
    """A rival of uniform precision, with its measured speed over `Results.best_parent` and its KL."""

    key: Key
    speed: Estimate
    kl: Estimate
    at_speed: Meeting
    at_kl: Meeting


def _meet(
    points: Sequence[tuple[Estimate, Estimate]], place: Estimate, value: Estimate, sign: int, ends: tuple[str, str]
) -> Meeting:
    """Compare a rival's value with points of the children, interpolated at the rival's place.

    Args:
        points: place and value of every child, in the order of places.
        place: the rival's place.
        value: the rival's value.
        sign: 1 if a lower value is better, -1 if a higher one is.
        ends: who can win against the first child beyond it, and against the last child beyond it.
    """
    children, nearest, winner = interpolate(points, place), None, ""
    if children is None:
        last = place.value > points[-1][0].value
        nearest, children = points[-1 if last else 0]
        winner = ends[last]
    error = math.hypot(children.standard_error or 0, value.standard_error or 0)
    verdict = decide(Estimate(sign * (children.value - value.value), error))
    return Meeting(children, verdict if nearest is None or verdict == winner else "", nearest)


def beside_uniform(results: Results, model: str) -> list[Rivalry]:
    """Compare every rival of uniform precision with the searched children, at its speed and at its KL.

    The children are the best ones of all targets and the best-run parent.

    Args:
        results: the run.
        model: ``'child'`` (before finetuning) or ``'finetuned'``.
    """
    children = _frontier(results, "kl", model, BEST)
    by_kl = sorted(((kl, speed) for speed, kl in children), key=lambda point: point[0].value)
    rivalries = []
    for target, solution in results.children:
        key = Key(target, solution, model)
        point = _measured(results, key, "kl") if solution in UNIFORM else None
        if point is None or len(children) < 2:
            continue
        speed, kl = point
        at_speed = _meet(children, speed, kl, 1, ("child", "baseline"))
        at_kl = _meet(by_kl, kl, speed, -1, ("baseline", "child"))
        rivalries.append(Rivalry(key, speed, kl, at_speed, at_kl))
    return rivalries


def quality_kept(results: Results, key: Key) -> Estimate | None:
    """Return the mean normalized accuracy on tasks as a share of the parent's; None without tasks.

    Normalized is (accuracy - chance) / (1 - chance). The difference to the parent is paired by question, so its error,
    not those of both accuracies, enters the ratio 1 + difference / parent.
    """
    parent = results.estimate(PARENT_KEY, "mean", "acc_above_chance")
    if parent is None or parent.value <= 0:
        return None
    difference = results.estimate(key, "mean", "acc_above_chance_difference")
    if key == PARENT_KEY or difference is None:
        return Estimate(1.0, 0.0, parent.n) if key == PARENT_KEY else None
    if difference.value == 0:
        return Estimate(1.0, (difference.standard_error or 0) / parent.value, difference.n)
    share = ratio(difference, parent)
    return Estimate(1 + share.value, share.standard_error, difference.n)


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
