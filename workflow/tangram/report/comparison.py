"""Statistics of the report: comparisons of children with rivals, quality that tasks show, and rank correlation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from tangram.config import LAYERS_DROPPED, RANDOM_WEIGHTS
from tangram.report.data import BEST, HELDOUT, UNIFORM, Results
from tangram.report.estimates import CONFIDENCE, Estimate, Key
from tangram.report.interpolation import Point, loss_at, loss_difference, speed_at, speed_difference
from tangram.report.prediction import ROUNDING, predicted_speedup
from tangram.report.samples import normalized, share_of_parent

VERDICTS = {"child": "Tangram", "baseline": "layers dropped", "tie": "tie", "": "–"}  # for people  # noqa: RUF001
RIVAL_VERDICTS = {**VERDICTS, "baseline": "uniform"}


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


def _measured(results: Results, key: Key, metric: str) -> Point | None:
    speed, value = results.claimed_speedup(key), results.heldout(key, metric)
    return Point(speed, value, results.samples.get((key, HELDOUT, metric))) if speed and value else None


def _frontier(results: Results, metric: str, model: str, solution: str) -> dict[Key, Point]:
    """Return the best-run parent and one solution of every target, from slow to fast."""
    keys = [results.best_parent, *(Key(target, solution, model) for target in results.settings.targets)]
    points = {key: point for key in keys if (point := _measured(results, key, metric))}
    return dict(sorted(points.items(), key=lambda item: item[1].speed.value))


def compare(results: Results, metric: str, model: str) -> list[Comparison]:
    """Compare the best child of every target with the layers-dropped baseline, by a held-out loss (lower is better).

    The best-run parent, without dropped layers and at speed 1, is the baseline's first point. KL is interpolated on a
    logarithmic scale, and its difference is then that of logarithms.

    Args:
        results: the run.
        metric: ``'kl'`` or ``'lm_loss'``, nats per token.
        model: ``'child'`` (before finetuning) or ``'finetuned'``.
    """
    baseline = list(_frontier(results, metric, model, LAYERS_DROPPED).values())
    comparisons = []
    for target in results.settings.targets:
        key = Key(target, BEST, model)
        child = _measured(results, key, metric)
        if child is None:
            continue
        other = slower = difference = None
        verdict = ""
        # A baseline needs a point besides the parent.
        if len(baseline) > 1 and (found := loss_at(baseline, child, logarithmic=metric == "kl")):
            other, difference = found.value, found.difference.times(-1)
            verdict = decide(difference)
        elif len(baseline) > 1 and child.speed.value > baseline[-1].speed.value:
            slower, other = baseline[-1].speed, baseline[-1].loss
            difference = loss_difference(child, baseline[-1])
            verdict = "child" if decide(difference) == "child" else ""
        comparisons.append(Comparison(key, child.speed, child.loss, other, difference, verdict, slower))
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
    """A rival of uniform precision, with its measured speed over `Results.best_parent` and its KL.

    ``better`` is a child that is both faster and closer to the parent, each by more than the errors, or None.
    ``as_fast`` is one that is closer by more than the errors, by prediction at least as fast, and measured as fast or
    faster within the errors; or None.
    """

    key: Key
    speed: Estimate
    kl: Estimate
    at_speed: Meeting
    at_kl: Meeting
    better: Key | None
    as_fast: Key | None


def _meet(points: Sequence[Point], rival: Point, at_loss: bool) -> Meeting:
    """Compare a rival with the children's loss at its speed, or with their speed at its loss."""
    found = (speed_at if at_loss else loss_at)(points, rival, logarithmic=True)
    if found is not None:
        return Meeting(found.value, decide(found.difference.times(-1 if at_loss else 1)))
    ordered = sorted(points, key=lambda point: (point.loss if at_loss else point.speed).value)
    beyond = rival.loss.value > ordered[-1].loss.value if at_loss else rival.speed.value > ordered[-1].speed.value
    end = ordered[-1 if beyond else 0]
    winner = "child" if beyond == at_loss else "baseline"  # who can be better in both
    if at_loss:
        value, place, difference = end.speed, end.loss, speed_difference(rival, end)
    else:
        value, place, difference = end.loss, end.speed, loss_difference(end, rival)
    return Meeting(value, winner if decide(difference) == winner else "", place)


def _better(children: Mapping[Key, Point], rival: Point) -> Key | None:
    """Return the closest child that is faster than a rival and closer to the parent, or None."""
    better = [
        (child.loss.value, key)
        for key, child in children.items()
        if decide(speed_difference(rival, child)) == decide(loss_difference(child, rival)) == "child"
    ]
    return min(better)[1] if better else None


def _as_fast(results: Results, children: Mapping[Key, Point], key: Key, rival: Point) -> Key | None:
    """Return the closest child that `Rivalry.as_fast` describes, or None."""

    def predicted(key: Key) -> float:
        return predicted_speedup(results, key.target, key.solution) or 0.0

    closer = [
        (child.loss.value, other)
        for other, child in children.items()
        if predicted(other) >= predicted(key) * (1 - ROUNDING) > 0
        and decide(speed_difference(rival, child)) != "baseline"
        and decide(loss_difference(child, rival)) == "child"
    ]
    return min(closer)[1] if closer else None


def beside_uniform(results: Results, model: str) -> list[Rivalry]:
    """Compare every rival of uniform precision with the searched children, at its speed and at its KL.

    The children are the best ones of all targets and the best-run parent. A rival with a better child has lost, which
    needs no interpolation.

    Args:
        results: the run.
        model: ``'child'`` (before finetuning) or ``'finetuned'``.
    """
    children = _frontier(results, "kl", model, BEST)
    rivalries = []
    for target, solution in results.children:
        key = Key(target, solution, model)
        rival = _measured(results, key, "kl") if solution in UNIFORM else None
        if rival is None or len(children) < 2:
            continue
        points, better = list(children.values()), _better(children, rival)
        at_speed, at_kl = _meet(points, rival, at_loss=False), _meet(points, rival, at_loss=True)
        if better:
            at_speed, at_kl = replace(at_speed, verdict="child"), replace(at_kl, verdict="child")
        as_fast = _as_fast(results, children, key, rival)
        rivalries.append(Rivalry(key, rival.speed, rival.loss, at_speed, at_kl, better, as_fast))
    return rivalries


def quality_kept(results: Results, key: Key) -> Estimate | None:
    """Return the mean normalized accuracy on tasks as a share of the parent's, paired; None without tasks.

    Normalized is (accuracy - chance) / (1 - chance) of each task, whose unweighted mean counts.
    """
    return share_of_parent(results.samples, normalized(results.samples, key))


def quality_difference(results: Results, key: Key, other: Key) -> Estimate | None:
    """Return the quality that one model keeps less that of another, paired by question; None without tasks."""
    one, two = normalized(results.samples, key), normalized(results.samples, other)
    if {task: len(v) for task, v in one.items()} != {task: len(v) for task, v in two.items()}:
        return None
    return share_of_parent(results.samples, {task: one[task] - two[task] for task in one})


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
        if score is not None and kl is not None and solution != RANDOM_WEIGHTS:  # scores are those of pieces
            children.append(Scored(target, solution, score, kl))
    return children
