"""A solution with its optimality bound, and the check of both by sums over the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tangram.blocks.architecture import Architecture
from tangram.config import Search
from tangram.errors import TangramError
from tangram.search.problem import EXACT, TOLERANCE, Batches, Problem, rounding


@dataclass(frozen=True)
class Solution:
    """One solution of the solver; `verify` checks it.

    Attributes:
        architecture: one pair of variants per layer, and one variant of the head.
        batches: batch size of every constrained scenario.
        objective: sum of scores.
        bound: lower bound of the sum of scores over all architectures that are diverse from the earlier solutions.
        gap: distance between objective and bound, relative to the objective (see `Problem.scale_of_gap`).
        shadow_prices: by constraint, the decrease of the LP relaxation's objective when its limit is loosened by 1 %.
    """

    architecture: Architecture
    batches: Batches
    objective: float
    bound: float
    gap: float
    shadow_prices: tuple[float, ...]


def verify(problem: Problem, search: Search, solution: Solution, earlier: Sequence[Solution] = ()) -> None:
    """Check a solution by sums over the tables, independently of the solver's model.

    Raises:
        TangramError: the solution has not one option per layer, its objective is not the sum of its scores, it exceeds
            a limit, it shares too many layers with an earlier solution, or its gap is too large.
    """

    def require(holds: bool, violation: str) -> None:
        if not holds:
            raise TangramError(f"the solver's solution failed its re-check: {violation}; please report this as a bug")

    require(len(solution.architecture.layers) == problem.num_layers, "it has not one option per layer")
    total = problem.objective(solution.architecture)
    require(
        abs(total - solution.objective) <= rounding(total),
        f"objective {solution.objective} is not the sum of scores {total}",
    )
    for name, batch in solution.batches.items():
        require(batch in problem.costs.scenarios[name].batch_sizes, f"batch {batch} is not in the grid of '{name}'")
    for constraint in problem.target.constraints:
        slack = problem.slack(constraint, solution.architecture, solution.batches)
        require(slack >= -TOLERANCE, f"{constraint} is exceeded by {-slack:.2e}")
    for number, other in enumerate(earlier):
        same = sum(a == b for a, b in zip(solution.architecture.layers, other.architecture.layers, strict=True))
        allowed = problem.target.max_shared * problem.num_layers + EXACT
        require(same <= allowed, f"it shares {same} layers with solution {number}, allowed are {allowed:.1f}")
    scale = problem.scale_of_gap(total, earlier[0].architecture if earlier else None)
    allowed = (search.diverse_gap if earlier else 0.0) * scale + rounding(total)
    proven = max(solution.objective - solution.bound, solution.gap * scale) <= allowed
    require(proven, f"bound {solution.bound} does not prove objective {solution.objective}")
