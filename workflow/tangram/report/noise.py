"""The uncertainty of measured costs, and the choices that depend on it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from tangram.blocks.base import NO_OP, PARENT
from tangram.report.comparison import CONFIDENCE
from tangram.report.data import BEST, Results, rows_of
from tangram.timing import MEDIAN_EFFICIENCY

INTERQUARTILE = 1.349  # interquartile range of a normal distribution, in standard deviations
WIDEST = 0.02  # of an interval that is certain enough, in shares of the parent's piece


@dataclass(frozen=True)
class NoisyCost:
    """One variant's cost relative to the parent's piece, whose interval ratio +- half_width is wide.

    ``chosen`` counts the subblocks of this variant in the best solution of every target that has one.
    """

    kind: str
    variant: str
    scenario: str
    phase: str
    batch: int
    ratio: float
    half_width: float
    chosen: dict[str, int]


def noisy_costs(results: Results) -> list[NoisyCost] | None:
    """Return the costs with a 95 % interval wider than 2 % of the parent's piece, the widest first.

    The standard error of a median of n normal samples is 1.253 standard deviations / sqrt(n), and their interquartile
    range is 1.349 standard deviations. Drift during a job widens the range, so the interval is rather too wide. The
    error of the parent's own median is not in the table.

    Returns:
        The costs; None if the number of repeats is unknown.
    """
    if not results.settings.cost_repeats or not len(results.costs):
        return None
    factor = CONFIDENCE * MEDIAN_EFFICIENCY / INTERQUARTILE / math.sqrt(results.settings.cost_repeats)
    counts = {
        target: Counter((kind, variant) for _, kind, variant in results.architectures[target, BEST].pieces())
        for target in results.settings.targets
        if (target, BEST) in results.architectures
    }
    noisy = []
    for row in rows_of(results.costs):
        if row.variant in (PARENT, NO_OP) or row.parent_seconds <= 0:
            continue
        half_width = factor * row.seconds_spread / row.parent_seconds
        if 2 * half_width <= WIDEST:
            continue
        chosen = {target: count[row.kind, row.variant] for target, count in counts.items()}
        chosen = {target: count for target, count in chosen.items() if count}
        ratio = row.seconds / row.parent_seconds
        noisy.append(NoisyCost(row.kind, row.variant, row.scenario, row.phase, row.batch, ratio, half_width, chosen))
    return sorted(noisy, key=lambda cost: -cost.half_width)
