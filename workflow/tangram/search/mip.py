"""The mixed-integer program of Puzzle (arXiv 2411.19146, appendix B), in Pyomo, solved by HiGHS.

minimise Σ score · x  subject to  Σ_j x_lj = 1 for every layer l,  usage · x ≤ budget,  x binary,
and for diverse solutions  Σ_l x_l,y(l) ≤ α · L  for every earlier solution y. As x chooses a *pair* of subblocks per
layer, that cut counts layers: one is shared if both its attention and its FFN are the same.

The batch size of each scenario is no variable: every combination of the grid is its own program. They are solved in
the order of their lower bounds (LP relaxation, then the last solve's), until none left can be better.

A program is solved on the few candidates whose reduced costs in the LP relaxation are at most τ: any x with another one
costs at least LP + τ, so min(their bound, LP + τ) bounds the whole program. Where that proves too little, τ grows to
the distance of objective and LP, which always suffices. At 80 layers of 54 pairs this is several times faster than
giving the solver everything.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tangram.blocks.architecture import Architecture
from tangram.config import Constraint, Search
from tangram.errors import TangramError
from tangram.search.problem import TOLERANCE, Batches, Problem, Resources

EXACT = 1e-9  # two objectives closer than this, relative to max(1, |objective|), are equal
COLUMNS_PER_LAYER = 3  # that a program is first tried with
OPTIONS = {
    "threads": 1,
    "random_seed": 0,
    "mip_feasibility_tolerance": 1e-9,
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
}


@dataclass(frozen=True)
class Solution:
    """One solution, re-checked by `verify`.

    Attributes:
        architecture: one pair of variants per layer.
        batches: batch size of every constrained scenario.
        objective: sum of scores.
        bound: no architecture (that differs enough from the earlier solutions) has a smaller sum of scores.
        gap: distance of objective and bound, relative to the objective (see `scale_of_gap`).
        shadow_prices: by constraint: how much the LP relaxation's objective falls when its limit is loosened by 1 %.
    """

    architecture: Architecture
    batches: Batches
    objective: float
    bound: float
    gap: float
    shadow_prices: tuple[float, ...]


def scale_of_gap(problem: Problem, objective: float, best: Architecture | None = None) -> float:
    """Return what a gap is relative to: the objective, or the best solution's sum of absolute scores if that is larger.

    The two differ only where noise makes scores negative: sums near zero then do not ask for a gap near zero.
    """
    scores = [problem.candidate(layer, choice).score for layer, choice in enumerate(best or ())]
    return max(abs(objective), math.fsum(map(abs, scores)))


@dataclass(frozen=True)
class Outcome:
    """What the solver found."""

    values: np.ndarray  # of every candidate
    objective: float
    bound: float
    duals: np.ndarray  # of every row of resources; zeros unless relaxed
    reduced_costs: np.ndarray  # of every candidate; zeros unless relaxed


def optimise(
    problem: Problem,
    objective: np.ndarray,
    resources: Resources,
    search: Search,
    *,
    cuts: Sequence[Architecture] = (),
    relative_gap: float = 0.0,
    absolute_gap: float = 0.0,
    relax: bool = False,
    columns: np.ndarray | None = None,
) -> Outcome | None:
    """Minimise ``objective @ x``, over some ``columns`` of x if given; None if no x is feasible.

    Raises:
        TangramError: the time limit was hit or the solver gave up: never an answer.
    """
    import pyomo.environ as pyo
    from pyomo.contrib.solver.common.results import TerminationCondition
    from pyomo.contrib.solver.solvers.highs import Highs
    from pyomo.core.expr.numeric_expr import LinearExpression

    def linear(coefficients: Sequence[float], variables: Sequence[Any]) -> Any:
        return LinearExpression(constant=0.0, linear_coefs=list(coefficients), linear_vars=list(variables))

    layers = len(problem.candidates)
    columns = np.arange(len(objective)) if columns is None else columns
    starts = np.searchsorted(problem.layer_of[columns], np.arange(layers + 1))
    model = pyo.ConcreteModel()
    model.x = pyo.Var(columns.tolist(), domain=pyo.UnitInterval if relax else pyo.Binary)
    x = list(model.x.values())
    model.score = pyo.Objective(expr=linear(objective[columns].tolist(), x))
    model.one_choice = pyo.ConstraintList()
    for first, last in itertools.pairwise(starts):
        model.one_choice.add(linear([1.0] * (last - first), x[first:last]) == 1)
    model.limits = pyo.Constraint(pyo.Any)
    for row, (usage, budget) in enumerate(zip(resources.usage[:, columns], resources.budget, strict=True)):
        if usage.any():
            model.limits[row] = linear(usage.tolist(), x) <= float(budget)
        elif budget < -TOLERANCE:
            return None
    model.diversity = pyo.ConstraintList()
    for earlier in cuts:
        shared = [model.x[i] for i in _positions(problem, earlier) if i in model.x]
        if shared:
            limit = math.floor(problem.target.max_shared * layers + EXACT)
            model.diversity.add(linear([1.0] * len(shared), shared) <= limit)

    result = Highs().solve(
        model,
        solver_options={**OPTIONS, "mip_rel_gap": relative_gap, "mip_abs_gap": absolute_gap},
        time_limit=search.time_limit,
        load_solutions=False,
        raise_exception_on_nonoptimal_result=False,
    )
    status = result.termination_condition
    if status in (TerminationCondition.provenInfeasible, TerminationCondition.infeasibleOrUnbounded):
        return None  # every variable is bounded, so it is not unbounded
    if status != TerminationCondition.convergenceCriteriaSatisfied:
        raise TangramError(
            f"the solver proved no optimum within search.time_limit = {search.time_limit:g} s ({status.name}); "
            "raise it, loosen search.diverse_gap, or ask for fewer solutions or batch sizes"
        )
    duals, reduced_costs, values = np.zeros(len(resources.usage)), np.zeros(len(objective)), np.zeros(len(objective))
    if relax:
        found = result.solution_loader.get_duals(list(model.limits.values()))
        for row, constraint in model.limits.items():
            duals[row] = found[constraint]
        prices = result.solution_loader.get_reduced_costs(x)
        reduced_costs[columns] = [prices[v] for v in x]
    solution = result.solution_loader.get_vars(x)
    values[columns] = [solution[v] for v in x]
    bound = result.incumbent_objective if relax else result.objective_bound
    return Outcome(values, float(result.incumbent_objective), float(bound), duals, reduced_costs)


def _solve_program(
    problem: Problem,
    resources: Resources,
    relaxed: Outcome,
    search: Search,
    cuts: Sequence[Architecture],
    relative_gap: float,
    scale: float,
) -> Outcome | None:
    """Minimise the sum of scores to within ``relative_gap * max(|objective|, scale)``; None if no x is feasible.

    ``relaxed`` is the same program's LP relaxation, cuts included.
    """
    lower = relaxed.objective - _lp_room(relaxed.objective)
    prices = np.sort(relaxed.reduced_costs)
    count = COLUMNS_PER_LAYER * len(problem.candidates)
    width = prices[min(count, len(prices)) - 1]
    while True:
        columns = np.flatnonzero(relaxed.reduced_costs <= width)
        everything = len(columns) == len(prices)
        outcome = optimise(
            problem,
            problem.scores,
            resources,
            search,
            cuts=cuts,
            relative_gap=relative_gap,
            absolute_gap=relative_gap * scale,
            columns=columns,
        )
        if everything:
            return outcome
        if outcome is None:
            count *= 4
            width = prices[min(count, len(prices)) - 1]
            continue
        bound = min(outcome.bound, lower + width)
        needed = outcome.objective - lower + _close(outcome.objective)
        # The solver's own bound may be a rounding error below its objective: more columns would not change that.
        if width >= needed or outcome.objective - bound <= relative_gap * max(abs(outcome.objective), scale):
            return replace(outcome, bound=bound)
        width = needed


def _lp_room(objective: float) -> float:
    """Return how far an LP's optimum may be above the true one: it is exact up to the dual tolerance only."""
    return 1e-6 * max(1.0, abs(objective))


def _flat(problem: Problem) -> list[tuple[int, Any]]:
    return [(layer, candidate) for layer, candidates in enumerate(problem.candidates) for candidate in candidates]


def _positions(problem: Problem, architecture: Architecture) -> list[int]:
    """Return the index of each layer's choice among all candidates."""
    position = {(layer, candidate.choice): i for i, (layer, candidate) in enumerate(_flat(problem))}
    return [position[layer, choice] for layer, choice in enumerate(architecture)]


@dataclass
class _Program:
    """The program of one combination of batch sizes; its lower bound rises from solve to solve."""

    batches: Batches
    resources: Resources
    relaxed: Outcome  # without cuts
    lower: float


def architecture_of(problem: Problem, values: np.ndarray) -> Architecture:
    """Return the choices that a program's values stand for."""
    return tuple(c.choice for (_, c), value in zip(_flat(problem), values, strict=True) if value > 0.5)


def _close(objective: float) -> float:
    return EXACT * max(1.0, abs(objective))


def _throughput_slack(problem: Problem, solution: Solution) -> float:
    """Return the sum of relative throughput slacks: what breaks ties between batch sizes."""
    return sum(
        problem.slack(constraint, solution.architecture, solution.batches)
        for constraint in problem.target.constraints
        if constraint.quantity == "throughput"
    )


def solve(problem: Problem, search: Search) -> list[Solution]:
    """Return the target's diverse solutions, the proven best first.

    Raises:
        TangramError: no architecture keeps the limits (which one binds, and the nearest feasible value), fewer diverse
            solutions exist than asked for, or the time limit was hit.
    """
    programs = []
    for batches in problem.batch_grid():
        resources = problem.resources(batches)
        relaxed = optimise(problem, problem.scores, resources, search, relax=True)
        if relaxed is not None:
            lower = relaxed.objective - _lp_room(relaxed.objective)
            programs.append(_Program(batches, resources, relaxed, lower))
    solutions: list[Solution] = []
    for rank in range(problem.target.solutions):
        gap = search.diverse_gap if rank else 0.0
        earlier = [solution.architecture for solution in solutions]
        leader = earlier[0] if earlier else None
        best: Solution | None = None
        for program in sorted(programs, key=lambda program: program.lower):
            if best:
                allowed = gap * scale_of_gap(problem, best.objective, leader)
                if program.lower > best.objective - allowed + _close(best.objective):
                    break
            scale = scale_of_gap(problem, 0.0, leader)
            relaxed = program.relaxed
            if earlier:
                relaxed = optimise(problem, problem.scores, program.resources, search, cuts=earlier, relax=True)
            outcome = relaxed and _solve_program(problem, program.resources, relaxed, search, earlier, gap, scale)
            if outcome is None:
                program.lower = math.inf
                continue
            architecture = architecture_of(problem, outcome.values)
            objective = problem.objective(architecture)
            program.lower = max(program.lower, min(outcome.bound, objective))
            prices = tuple(-0.01 * float(dual) + 0.0 for dual in program.relaxed.duals)
            found = Solution(architecture, program.batches, objective, program.lower, 0.0, prices)
            if best is None or _better(problem, found, best):
                best = found
        if best is None:
            raise _infeasible(problem, search) if rank == 0 else _too_few(problem, rank)
        # Valid for every batch size: those not solved have lower bounds, too.
        bound = min(best.objective, *(program.lower for program in programs))
        scale = scale_of_gap(problem, best.objective, leader)
        best = replace(best, bound=bound, gap=(best.objective - bound) / scale if bound < best.objective else 0.0)
        verify(problem, search, best, solutions)
        solutions.append(best)
    return solutions


def _better(problem: Problem, one: Solution, other: Solution) -> bool:
    difference = one.objective - other.objective
    if abs(difference) > _close(other.objective):
        return difference < 0
    return _throughput_slack(problem, one) > _throughput_slack(problem, other) + TOLERANCE


def verify(problem: Problem, search: Search, solution: Solution, earlier: Sequence[Solution] = ()) -> None:
    """Re-check a solution by plain sums over the tables, without anything of the solver's model.

    Raises:
        TangramError: it is not one candidate per layer, its objective is not the sum of its scores, it breaks a limit,
            shares too many layers with an earlier one, or is further from its bound than allowed.
    """

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise TangramError(f"the solver's answer failed its re-check: {what}; please report this as a bug")

    require(len(solution.architecture) == len(problem.candidates), "it does not choose once per layer")
    total = problem.objective(solution.architecture)
    require(
        abs(total - solution.objective) <= _close(total),
        f"objective {solution.objective} is not the sum of scores {total}",
    )
    for name, batch in solution.batches.items():
        require(batch in problem.costs.scenarios[name].batch_sizes, f"batch {batch} is not in the grid of '{name}'")
    for constraint in problem.target.constraints:
        slack = problem.slack(constraint, solution.architecture, solution.batches)
        require(slack >= -TOLERANCE, f"{describe(constraint)} is exceeded by {-slack:.2e}")
    for rank, other in enumerate(earlier):
        same = sum(a == b for a, b in zip(solution.architecture, other.architecture, strict=True))
        allowed = problem.target.max_shared * len(problem.candidates) + EXACT
        require(same <= allowed, f"it shares {same} layers with rank {rank}, allowed are {allowed:.1f}")
    scale = scale_of_gap(problem, total, earlier[0].architecture if earlier else None)
    allowed = (search.diverse_gap if earlier else 0.0) * scale + _close(total)
    proven = max(solution.objective - solution.bound, solution.gap * scale) <= allowed
    require(proven, f"bound {solution.bound} does not prove objective {solution.objective}")


def describe(constraint: Constraint) -> str:
    """Return a constraint in words, such as ``throughput in 'chat' >= 1.2 x the parent's``."""
    sign, limit = (">=", constraint.min) if constraint.quantity == "throughput" else ("<=", constraint.max)
    where = f" in '{constraint.scenario}'" if constraint.scenario else ""
    unit = " x the parent's" if constraint.relative_to_parent else ""
    return f"{constraint.quantity}{where} {sign} {limit:g}{unit}"


def _loosened(constraint: Constraint, factor: float) -> Constraint:
    """Return a constraint whose limit is loosened by a factor, rounded to four digits on the loose side."""

    def rounded(value: float, direction: Any) -> float:
        unit = 10.0 ** (math.floor(math.log10(value)) - 3)
        return float(f"{direction(value / unit) * unit:.12g}")

    if constraint.quantity == "throughput":
        return constraint.model_copy(update={"min": rounded((constraint.min or 0) / factor, math.floor)})
    return constraint.model_copy(update={"max": rounded((constraint.max or 0) * factor, math.ceil)})


def _reachable(problem: Problem, search: Search, row: int, alone: bool) -> tuple[float, Constraint] | None:
    """Return how far one constraint must be loosened at least for a solution to exist, and the loosened constraint.

    Args:
        problem: an infeasible one.
        search: for its time limit.
        row: which constraint.
        alone: whether the other constraints are left out.
    """
    factor = math.inf
    others = [i for i in range(len(problem.target.constraints)) if i != row and not alone]
    for batches in problem.batch_grid():
        resources = problem.resources(batches)
        kept = Resources(resources.usage[others], resources.fixed[others])
        outcome = optimise(problem, resources.usage[row], kept, search, relative_gap=1e-4)
        if outcome is not None:
            usage = float(resources.usage[row] @ np.round(outcome.values) + resources.fixed[row])
            factor = min(factor, usage)
    if factor == math.inf:
        return None
    constraint = _loosened(problem.target.constraints[row], factor)
    # A limit on memory also moves the parent's best throughput, which others may be relative to: so try it.
    constraints = tuple(constraint if i == row else problem.target.constraints[i] for i in [*others, row])
    loosened = replace(problem, target=problem.target.model_copy(update={"constraints": constraints}))
    for batches in loosened.batch_grid():
        if optimise(loosened, np.zeros(len(loosened.scores)), loosened.resources(batches), search) is not None:
            return factor, constraint
    return None


def _infeasible(problem: Problem, search: Search) -> TangramError:
    """Return the error that says which constraints bind, and the nearest values that are feasible."""
    constraints = problem.target.constraints
    for alone in (False, True):
        found = [
            (result[0], i, result[1])
            for i in range(len(constraints))
            if (result := _reachable(problem, search, i, alone)) is not None and result[0] > 1
        ]
        if found:
            parts = [f"{describe(constraints[i])} (feasible: {describe(near)})" for _, i, near in sorted(found)[:3]]
            if len(constraints) == 1:
                how = "loosen it, or add smaller variants to the library"
            elif alone:
                how = "loosening one is not enough: these values are reachable only without the others"
            else:
                how = "loosen one of these" if len(parts) > 1 else "loosen it with the other limits as they are"
            return TangramError(f"the target is infeasible: {' or '.join(parts)}; {how}")
    return TangramError("the target is infeasible: loosen its constraints, or add smaller variants to the library")


def _too_few(problem: Problem, rank: int) -> TangramError:
    return TangramError(
        f"only {rank} solutions share at most {problem.target.max_shared:.0%} of the layers with each other; "
        f"set the target's solutions to {rank} or raise max_shared"
    )
