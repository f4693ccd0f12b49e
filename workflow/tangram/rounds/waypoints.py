"""The limits of a round: so far from the parent towards the target that the round loses its part of the quality.

Equal parts of the way would be unequal parts of the loss: with pieces of lower precision, half of the way costs next to
nothing, and the training after it has nothing to repair.
"""

from __future__ import annotations

from tangram.config import Constraint, Search
from tangram.search.problem import Problem
from tangram.search.solve import solve
from tangram.search.verify import Solution

HALVINGS = 5  # of the way, to find a round's limits


def waypoint(problem: Problem, search: Search, rounds: int) -> tuple[Problem, Solution]:
    """Return the problem of the next of ``rounds`` rounds, and its proven best solution.

    Its limits are the nearest on the way to the target's whose proven best architecture loses at least 1 / ``rounds``
    of what the target's loses, up to 1/32 of the way. They are the target's in the last round, and if the target's
    architecture loses nothing.

    Args:
        problem: the target's problem, with the scores of pieces in the child of the round before.
        search: the solver's settings.
        rounds: the number of rounds that are left, this one included.
    """
    found = problem, solve(problem, search)[0]
    loss = found[1].objective
    if rounds == 1 or loss <= 0:
        return found
    near, far = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        nearer = on_the_way(problem, middle)
        solution = solve(nearer, search)[0]
        if solution.objective >= loss / rounds:
            far, found = middle, (nearer, solution)
        else:
            near = middle
    return found


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
