"""The uncertainty of measured costs, and the choices that another cost within its interval would change."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tangram.report.data import BEST, Results, rows_of
from tangram.report.estimates import CONFIDENCE

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


@dataclass(frozen=True)
class CostChange:
    """A variant's cost at one end of its interval that changes a target's best solution.

    ``changes`` counts subblocks by kind and both variants, such as ``'ffn: no-op to linear'``; it is None if no
    architecture satisfies the limits.
    """

    target: str
    kind: str
    variant: str
    end: str
    changes: dict[str, int] | None


def cost_changes(results: Results) -> list[CostChange] | None:
    """Return what another cost would change in the best solution of every target; None if no search has tried it."""
    tried = {
        target: results.solutions[target, BEST]["sensitivity"]
        for target in results.settings.targets
        if "sensitivity" in results.solutions.get((target, BEST), {})
    }
    if not tried:
        return None
    return [
        CostChange(target, r["kind"], r["variant"], r["end"], r["changes"] if r["feasible"] else None)
        for target, records in tried.items()
        for r in records
        if r["changes"] or not r["feasible"]
    ]
