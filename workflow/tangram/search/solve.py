"""The solver: a target's best solutions over all combinations of batch sizes.

The batch sizes are no variables: every combination of the grid has a program of its own. The programs are solved in
ascending order of their lower bounds (from the LP relaxation, then from the last solve) until no remaining one can be
better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tangram.config import Search
from tangram.search.infeasible import infeasible, too_few
from tangram.search.problem import EXACT, TOLERANCE, Batches, Problem, rounding
from tangram.search.program import Program, Relaxation, minimize_few, relax
from tangram.search.verify import Solution, verify


@dataclass
class _Combination:
    """One combination of batch sizes; its lower bound rises from solve to solve."""

    batches: Batches
    program: Program
    relaxation: Relaxation
    lower: float


def solve(problem: Problem, search: Search) -> list[Solution]:
    """Return the target's diverse solutions, the proven best first.

    Raises:
        TangramError: no architecture satisfies the limits (the error names the binding limit and the nearest feasible
            value), too few diverse solutions exist, or the solver hit the time limit.
    """
    combinations = _combinations(problem, search)
    solutions: list[Solution] = []
    while len(solutions) < problem.target.solutions:
        solution = _best(problem, search, combinations, solutions)
        if solution is None:
            raise too_few(problem, len(solutions)) if solutions else infeasible(problem, search)
        solution = replace(solution, batches=_fastest(problem, solution))
        verify(problem, search, solution, solutions)
        solutions.append(solution)
    return solutions


def _combinations(problem: Problem, search: Search) -> list[_Combination]:
    """Return the combinations of batch sizes whose LP relaxation is feasible."""
    combinations = []
    for batches in problem.batch_grid():
        program = Program.of(problem, problem.scores, problem.resources(batches))
        relaxation = relax(program, search.time_limit)
        if relaxation is not None:
            combinations.append(_Combination(batches, program, relaxation, relaxation.lower))
    return combinations


def _best(
    problem: Problem, search: Search, combinations: Sequence[_Combination], earlier: Sequence[Solution]
) -> Solution | None:
    """Return the best solution of all combinations that is diverse from the earlier ones; None if none exists."""
    leader = earlier[0].architecture if earlier else None
    best: Solution | None = None
    for combination in sorted(combinations, key=lambda combination: combination.lower):
        if best is not None:
            allowed = _gap(search, earlier) * problem.scale_of_gap(best.objective, leader)
            if combination.lower > best.objective - allowed + rounding(best.objective):
                break
        solution = _solve(problem, search, combination, earlier)
        combination.lower = math.inf if solution is None else solution.bound
        if solution is not None and (best is None or _better(problem, solution, best)):
            best = solution
    if best is None:
        return None
    # The bound holds for every batch size: unsolved combinations have lower bounds, too.
    bound = min(best.objective, *(combination.lower for combination in combinations))
    scale = problem.scale_of_gap(best.objective, leader)
    return replace(best, bound=bound, gap=(best.objective - bound) / scale if bound < best.objective else 0.0)


def _solve(problem: Problem, search: Search, combination: _Combination, earlier: Sequence[Solution]) -> Solution | None:
    """Return the best solution of one combination, with that combination's bound; None if none exists."""
    program, relaxation = combination.program, combination.relaxation
    if earlier:
        positions = tuple(
            tuple(problem.position(layer, choice) for layer, choice in enumerate(solution.architecture.layers))
            for solution in earlier
        )
        max_shared = math.floor(problem.target.max_shared * problem.num_layers + EXACT)
        program = replace(program, earlier=positions, max_shared=max_shared)
        diverse = relax(program, search.time_limit)
        if diverse is None:
            return None
        relaxation = diverse
    scale = problem.scale_of_gap(0.0, earlier[0].architecture if earlier else None)
    minimum = minimize_few(program, relaxation, search.time_limit, _gap(search, earlier), scale)
    if minimum is None:
        return None
    architecture = problem.architecture(minimum.values)
    objective = problem.objective(architecture)
    bound = max(combination.lower, min(minimum.bound, objective))
    prices = tuple(-0.01 * float(dual) + 0.0 for dual in combination.relaxation.duals)
    return Solution(architecture, combination.batches, objective, bound, 0.0, prices)


def _fastest(problem: Problem, solution: Solution) -> Batches:
    """Return the batch sizes of largest throughput within the limits; a scenario may have no limit on its speed."""
    architecture, batches = solution.architecture, dict(solution.batches)
    for name in batches:
        sizes = problem.costs.scenarios[name].batch_sizes
        fitting = [size for size in sizes if problem.feasible(architecture, {**batches, name: size})]
        speeds = [(problem.costs.predict(architecture, name, size).throughput, -size) for size in fitting]
        batches[name] = -max(speeds, default=(0.0, -batches[name]))[1]
    return batches


def _gap(search: Search, earlier: Sequence[Solution]) -> float:
    """Return the allowed relative gap: 0 for the first solution."""
    return search.diverse_gap if earlier else 0.0


def _better(problem: Problem, one: Solution, other: Solution) -> bool:
    difference = one.objective - other.objective
    if abs(difference) > rounding(other.objective):
        return difference < 0
    return _throughput_slack(problem, one) > _throughput_slack(problem, other) + TOLERANCE


def _throughput_slack(problem: Problem, solution: Solution) -> float:
    """Return the sum of relative throughput slacks, which breaks ties between batch sizes."""
    return sum(
        problem.slack(constraint, solution.architecture, solution.batches)
        for constraint in problem.target.constraints
        if constraint.quantity == "throughput"
    )
