"""A solution with its proof, and the re-check of both by plain sums over the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tangram.blocks.architecture import Architecture
from tangram.config import Search
from tangram.errors import TangramError
from tangram.search.problem import EXACT, TOLERANCE, Batches, Problem, describe, rounding


@dataclass(frozen=True)
class Solution:
    """One solution, re-checked by `verify`.

    Attributes:
        architecture: one pair of variants per layer.
        batches: batch size of every constrained scenario.
        objective: sum of scores.
        bound: no architecture (that differs enough from the earlier solutions) has a smaller sum of scores.
        gap: distance of objective and bound, relative to the objective (see `Problem.scale_of_gap`).
        shadow_prices: by constraint: how much the LP relaxation's objective falls when its limit is loosened by 1 %.
    """

    architecture: Architecture
    batches: Batches
    objective: float
    bound: float
    gap: float
    shadow_prices: tuple[float, ...]


def verify(problem: Problem, search: Search, solution: Solution, earlier: Sequence[Solution] = ()) -> None:
    """Re-check a solution by plain sums over the tables, without anything of the solver's model.

    Raises:
        TangramError: it is not one option per layer, its objective is not the sum of its scores, it breaks a limit,
            shares too many layers with an earlier one, or is further from its bound than allowed.
    """

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise TangramError(f"the solver's answer failed its re-check: {what}; please report this as a bug")

    require(len(solution.architecture) == len(problem.options), "it does not choose once per layer")
    total = problem.objective(solution.architecture)
    require(
        abs(total - solution.objective) <= rounding(total),
        f"objective {solution.objective} is not the sum of scores {total}",
    )
    for name, batch in solution.batches.items():
        require(batch in problem.costs.scenarios[name].batch_sizes, f"batch {batch} is not in the grid of '{name}'")
    for constraint in problem.target.constraints:
        slack = problem.slack(constraint, solution.architecture, solution.batches)
        require(slack >= -TOLERANCE, f"{describe(constraint)} is exceeded by {-slack:.2e}")
    for number, other in enumerate(earlier):
        same = sum(a == b for a, b in zip(solution.architecture, other.architecture, strict=True))
        allowed = problem.target.max_shared * len(problem.options) + EXACT
        require(same <= allowed, f"it shares {same} layers with solution {number}, allowed are {allowed:.1f}")
    scale = problem.scale_of_gap(total, earlier[0].architecture if earlier else None)
    allowed = (search.diverse_gap if earlier else 0.0) * scale + rounding(total)
    proven = max(solution.objective - solution.bound, solution.gap * scale) <= allowed
    require(proven, f"bound {solution.bound} does not prove objective {solution.objective}")
