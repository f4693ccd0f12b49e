"""Diagnosis of an infeasible target: which constraints bind, and the nearest feasible values."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tangram.config import Constraint, Search
from tangram.errors import TangramError
from tangram.search.problem import Problem
from tangram.search.program import Program, minimize


def infeasible(problem: Problem, search: Search) -> TangramError:
    """Return an error that names the binding constraints and the nearest feasible values."""
    constraints = problem.target.constraints
    for alone in (False, True):
        nearest = [
            (result[0], i, result[1])
            for i in range(len(constraints))
            if (result := _reachable(problem, search, i, alone)) is not None
        ]
        if nearest:
            parts = [f"{constraints[i]} (feasible: {near})" for _, i, near in sorted(nearest)[:3]]
            if len(constraints) == 1:
                remedy = "loosen it, or add smaller variants to the library"
            elif alone:
                remedy = "loosening one is not enough: these values are reachable only without the others"
            else:
                remedy = "loosen one of these" if len(parts) > 1 else "loosen it with the other limits as they are"
            return TangramError(f"the target is infeasible: {' or '.join(parts)}; {remedy}")
    return TangramError("the target is infeasible: loosen its constraints, or add smaller variants to the library")


def too_few(problem: Problem, solutions: int) -> TangramError:
    """Return an error that gives the number of diverse solutions that exist."""
    return TangramError(
        f"only {solutions} solutions share at most {problem.target.max_shared:.0%} of the layers with each other; "
        f"set the target's solutions to {solutions} or raise max_shared"
    )


def _reachable(problem: Problem, search: Search, row: int, alone: bool) -> tuple[float, Constraint] | None:
    """Return the smallest factor that makes the problem feasible if one constraint is loosened, and that constraint.

    None if no factor does, or if the constraint need not be loosened.

    Args:
        problem: an infeasible problem.
        search: the solver's settings, of which the time limit is used.
        row: index of the constraint to loosen.
        alone: whether to ignore the other constraints.
    """
    factor = math.inf
    others = [i for i in range(len(problem.target.constraints)) if i != row and not alone]
    for batches in problem.batch_grid():
        resources = problem.resources(batches)
        usage = resources.usage[row]
        program = Program(usage, problem.group_of, resources.usage[others], resources.budget[others])
        minimum = minimize(program, search.time_limit, relative_gap=1e-4)
        if minimum is not None:
            factor = min(factor, float(usage @ np.round(minimum.values) + resources.fixed[row]))
    if not 1 < factor < math.inf:
        return None
    constraint = _loosened(problem.target.constraints[row], factor)
    # A limit on memory changes the parent's best throughput, and with it relative limits: check the loosened problem.
    constraints = tuple(constraint if i == row else problem.target.constraints[i] for i in [*others, row])
    return (factor, constraint) if _feasible(problem.with_constraints(constraints), search) else None


def _feasible(problem: Problem, search: Search) -> bool:
    """Return whether some architecture satisfies every limit at some batch sizes."""
    for batches in problem.batch_grid():
        program = Program.of(problem, np.zeros(len(problem.scores)), problem.resources(batches))
        if minimize(program, search.time_limit) is not None:
            return True
    return False


def _loosened(constraint: Constraint, factor: float) -> Constraint:
    """Return a constraint with its limit loosened by a factor, rounded to four digits away from the old limit."""

    def rounded(value: float, direction: Callable[[float], int]) -> float:
        unit = 10.0 ** (math.floor(math.log10(value)) - 3)
        return float(f"{direction(value / unit) * unit:.12g}")

    if constraint.quantity == "throughput":
        return constraint.model_copy(update={"min": rounded((constraint.min or 0) / factor, math.floor)})
    return constraint.model_copy(update={"max": rounded((constraint.max or 0) * factor, math.ceil)})
