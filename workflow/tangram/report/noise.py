"""The uncertainty of measured costs, and the choices that depend on it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tangram.report.comparison import CONFIDENCE
from tangram.report.data import BEST, Results, rows_of

WIDEST = 0.02  # half-width of an interval that is certain enough, as a share of the parent's piece


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


def noisy_costs(results: Results) -> list[NoisyCost]:
    """Return the costs whose 95 % interval exceeds +- 2 % of the parent's piece, the widest first."""
    counts = {
        target: Counter((kind, variant) for _, kind, variant in results.architectures[target, BEST].pieces())
        for target in results.settings.targets
        if (target, BEST) in results.architectures
    }
    noisy = []
    for row in rows_of(results.costs):
        half_width = CONFIDENCE * row.ratio_error
        if half_width <= WIDEST or row.parent_seconds <= 0:
            continue
        chosen = {target: count[row.kind, row.variant] for target, count in counts.items()}
        chosen = {target: count for target, count in chosen.items() if count}
        ratio = row.seconds / row.parent_seconds
        noisy.append(NoisyCost(row.kind, row.variant, row.scenario, row.phase, row.batch, ratio, half_width, chosen))
    return sorted(noisy, key=lambda cost: -cost.half_width)
