"""The limits of a round: a part of the way from the parent to the target."""

from __future__ import annotations

from tangram.config import Constraint
from tangram.search.problem import Problem


def on_the_way(problem: Problem, share: float) -> Problem:
    """Return a problem whose limits are a share of the way from the parent's values to the target's, geometrically.

    A limit that the parent satisfies stays as it is, and with a share of 1 all of them do. No architecture within the
    target's limits exceeds those of an earlier round at the same batch sizes.

    Args:
        problem: the target's problem.
        share: between 0 (the parent) and 1 (the target).
    """
    if share == 1:
        return problem
    return problem.with_constraints(tuple(_between(problem, each, share) for each in problem.target.constraints))


def _between(problem: Problem, constraint: Constraint, share: float) -> Constraint:
    batches = problem.usual_batches(problem.parent)
    start = problem.predict(constraint, problem.parent, batches)
    if constraint.quantity == "throughput":
        # In tokens/s: the parent's best throughput depends on the limits of memory, which are others in every round.
        end = problem.limit(constraint, batches)
        if end <= start:
            return constraint
        return constraint.model_copy(update={"min": start ** (1 - share) * end**share, "relative_to_parent": False})
    start, end = start / problem.reference(constraint, batches), float(constraint.max or 0)
    return constraint if end >= start else constraint.model_copy(update={"max": start ** (1 - share) * end**share})
