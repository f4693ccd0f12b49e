"""The mixed-integer program of Puzzle (arXiv 2411.19146, appendix B), in Pyomo, solved by HiGHS.

minimize Σ score · x  subject to  Σ_j x_gj = 1 for every group g,  usage · x ≤ budget,  x binary,
and for diverse solutions  Σ_l x_l,y(l) ≤ α · L  for every earlier solution y. A group is a layer or the LM head. As x
chooses a *pair* of variants per layer, that cut counts layers: two solutions share a layer if both its attention and
its FFN are the same. The head does not count.

In llama.cpp a layer's usage can contain a stub that the model does not need if the next subblock is an FFN
(`costs/llama_layers.py`). A continuous variable per layer is 1 at most if the layer's FFN takes a stub's place.

The solver first sees only the options whose reduced cost in the LP relaxation is at most τ. Any x with another option
costs at least LP + τ, so min(bound over these options, LP + τ) bounds the full program. If that bound is too weak, τ
grows to the distance between objective and LP, which always suffices. For 80 layers of 54 pairs this is several times
faster than solving over all options.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tangram.blocks.architecture import LayerChoice
from tangram.costs.llama_layers import begins_with_ffn, is_empty, waits_for_ffn
from tangram.errors import TangramError
from tangram.search.problem import TOLERANCE, Problem, Resources, rounding

OPTIONS_PER_GROUP = 3  # mean number in the first restricted program
SOLVER_OPTIONS = {
    "threads": 1,
    "random_seed": 0,
    "mip_feasibility_tolerance": 1e-9,
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
}


@dataclass(frozen=True)
class Stubs:
    """Stubs that a layer's usage contains, and that no model needs in which the next subblock is an FFN.

    Attributes:
        waits: whether an option contains such a stub, at its end, ``(options,)``.
        empty: whether an option has no subblock, ``(options,)``.
        ends: whether an option begins with an FFN, ``(options,)``.
        usage: of one stub, ``(constraints,)``.
    """

    waits: np.ndarray
    empty: np.ndarray
    ends: np.ndarray
    usage: np.ndarray


@dataclass(frozen=True)
class Program:
    """Minimize ``scores @ x``: one option per group, ``usage @ x <= budget``, few layers shared with earlier solutions.

    Attributes:
        scores: ``(options,)``.
        group_of: every option's group, ascending, ``(options,)``.
        usage: ``(constraints, options)``.
        budget: ``(constraints,)``.
        earlier: the options of each earlier solution, by layer.
        max_shared: maximum number of layers that x shares with each of them.
        stubs: stubs that `usage` contains and that not every x needs.
    """

    scores: np.ndarray
    group_of: np.ndarray
    usage: np.ndarray
    budget: np.ndarray
    earlier: tuple[tuple[int, ...], ...] = ()
    max_shared: int = 0
    stubs: Stubs | None = None

    @classmethod
    def of(cls, problem: Problem, scores: np.ndarray, resources: Resources) -> Program:
        """Return the program of a problem at fixed batch sizes.

        Args:
            problem: the problem.
            scores: what to minimize, ``(options,)``.
            resources: its constraints.
        """
        stubs = None
        if resources.stub.any():
            choices = [option.choice for group in problem.options for option in group]
            waits, empty, ends = (
                np.array([isinstance(choice, LayerChoice) and holds(choice) for choice in choices])
                for holds in (waits_for_ffn, is_empty, begins_with_ffn)
            )
            stubs = Stubs(waits, empty, ends, resources.stub)
        return cls(scores, problem.group_of, resources.usage, resources.budget, stubs=stubs)

    @property
    def groups(self) -> int:
        """The number of groups."""
        return int(self.group_of[-1]) + 1


@dataclass(frozen=True)
class Relaxation:
    """The optimum of a program's LP relaxation.

    Attributes:
        objective: the optimal value.
        duals: dual value of every constraint, ``(constraints,)``.
        reduced_costs: reduced cost of every option, ``(options,)``.
    """

    objective: float
    duals: np.ndarray
    reduced_costs: np.ndarray

    @property
    def lower(self) -> float:
        """A lower bound of the program: the LP's optimum less the solver's dual tolerance."""
        return self.objective - 1e-6 * max(1.0, abs(self.objective))


@dataclass(frozen=True)
class Minimum:
    """A minimum of a program.

    Attributes:
        values: x, ``(options,)``.
        objective: the objective of x.
        bound: lower bound of the objective over all feasible x.
    """

    values: np.ndarray
    objective: float
    bound: float


def relax(program: Program, time_limit: float) -> Relaxation | None:
    """Solve the LP relaxation; None if no x is feasible.

    Raises:
        TangramError: the solver hit the time limit (in seconds) or proved no optimum.
    """
    solved = _run(_model(program, np.arange(len(program.scores)), binary=False), time_limit)
    if solved is None:
        return None
    model, result = solved
    constraints, variables = dict(model.limits.items()), list(model.x.values())
    row_duals = result.solution_loader.get_duals(list(constraints.values()))
    prices = result.solution_loader.get_reduced_costs(variables)
    duals = np.zeros(len(program.usage))  # a row without usage has no constraint
    for row, constraint in constraints.items():
        duals[row] = row_duals[constraint]
    reduced_costs = np.array([prices[variable] for variable in variables])
    return Relaxation(float(result.incumbent_objective), duals, reduced_costs)


def minimize(
    program: Program,
    time_limit: float,
    *,
    relative_gap: float = 0.0,
    absolute_gap: float = 0.0,
    options: np.ndarray | None = None,
) -> Minimum | None:
    """Solve a program, restricted to ``options`` if they are given; None if no x is feasible.

    Raises:
        TangramError: the solver hit the time limit (in seconds) or proved no optimum.
    """
    options = np.arange(len(program.scores)) if options is None else options
    model = _model(program, options, binary=True)
    solved = _run(model, time_limit, mip_rel_gap=relative_gap, mip_abs_gap=absolute_gap)
    if solved is None:
        return None
    model, result = solved
    variables = list(model.x.values())
    solution = result.solution_loader.get_vars(variables)
    values = np.zeros(len(program.scores))
    values[options] = [solution[variable] for variable in variables]
    return Minimum(values, float(result.incumbent_objective), float(result.objective_bound))


def minimize_few(
    program: Program, relaxation: Relaxation, time_limit: float, gap: float, scale: float
) -> Minimum | None:
    """Solve a program to within ``gap * max(|objective|, scale)``, restricted to as few options as prove that gap.

    Args:
        program: the program.
        relaxation: its LP relaxation, with the cuts of earlier solutions.
        time_limit: seconds of each run of the solver.
        gap: relative gap.
        scale: lower limit of the value that the gap is relative to.

    Returns:
        The minimum, whose bound holds for all options; None if no x is feasible.
    """
    prices = np.sort(relaxation.reduced_costs)
    count = OPTIONS_PER_GROUP * program.groups
    width = prices[min(count, len(prices)) - 1]
    while True:
        options = np.flatnonzero(relaxation.reduced_costs <= width)
        minimum = minimize(program, time_limit, relative_gap=gap, absolute_gap=gap * scale, options=options)
        if len(options) == len(prices):
            return minimum
        if minimum is None:
            count *= 4
            width = prices[min(count, len(prices)) - 1]
            continue
        bound = min(minimum.bound, relaxation.lower + width)
        needed = minimum.objective - relaxation.lower + rounding(minimum.objective)
        # The solver's bound may be a rounding error below its objective; more options do not change that.
        if width >= needed or minimum.objective - bound <= gap * max(abs(minimum.objective), scale):
            return replace(minimum, bound=bound)
        width = needed


def _model(program: Program, options: np.ndarray, binary: bool) -> Any | None:
    """Return the Pyomo model over some options; None if a constraint without usage is violated already."""
    import pyomo.environ as pyo
    from pyomo.core.expr.numeric_expr import LinearExpression

    def linear(coefficients: Sequence[float], variables: Sequence[Any]) -> Any:
        return LinearExpression(constant=0.0, linear_coefs=list(coefficients), linear_vars=list(variables))

    model = pyo.ConcreteModel()
    model.x = pyo.Var(options.tolist(), domain=pyo.Binary if binary else pyo.UnitInterval)
    x = list(model.x.values())
    model.score = pyo.Objective(expr=linear(program.scores[options].tolist(), x))
    model.one_option = pyo.ConstraintList()
    starts = np.searchsorted(program.group_of[options], np.arange(program.groups + 1))
    for first, last in itertools.pairwise(starts):
        model.one_option.add(linear([1.0] * (last - first), x[first:last]) == 1)
    replaced = [] if program.stubs is None else _replaced_stubs(model, program, program.stubs, options)
    model.limits = pyo.Constraint(pyo.Any)
    for row, (usage, budget) in enumerate(zip(program.usage[:, options], program.budget, strict=True)):
        if usage.any():
            stubs = [-float(program.stubs.usage[row])] * len(replaced) if program.stubs is not None else []
            model.limits[row] = linear([*usage.tolist(), *stubs], [*x, *replaced]) <= float(budget)
        elif budget < -TOLERANCE:
            return None
    model.diversity = pyo.ConstraintList()
    for solution in program.earlier:
        shared = [model.x[option] for option in solution if option in model.x]
        if shared:
            model.diversity.add(linear([1.0] * len(shared), shared) <= program.max_shared)
    return model


def _replaced_stubs(model: Any, program: Program, stubs: Stubs, options: np.ndarray) -> list[Any]:
    """Add the stubs of earlier layers that a layer's FFN replaces, a variable per layer; return the variables.

    ``waiting`` is 1 at most if the last subblock so far waits for an FFN. All limits let both variables be as large as
    possible, so they need not be binary.
    """
    import pyomo.environ as pyo

    groups = range(program.groups)
    model.waiting = pyo.Var(groups, domain=pyo.UnitInterval)
    model.replaced = pyo.Var(groups, domain=pyo.UnitInterval)
    model.stubs = pyo.ConstraintList()
    for group in groups:
        of_group = options[program.group_of[options] == group]
        waits, empty, ends = (
            sum(model.x[option] for option in of_group[flags[of_group]].tolist())
            for flags in (stubs.waits, stubs.empty, stubs.ends)
        )
        before = model.waiting[group - 1] if group else 0.0
        model.stubs.add(model.waiting[group] <= waits + empty)
        model.stubs.add(model.waiting[group] <= waits + before)
        model.stubs.add(model.replaced[group] <= ends)
        model.stubs.add(model.replaced[group] <= before)
    return list(model.replaced.values())


def _run(model: Any | None, time_limit: float, **gaps: float) -> tuple[Any, Any] | None:
    """Return a model and HiGHS's result; None if no x is feasible."""
    from pyomo.contrib.solver.common.results import TerminationCondition
    from pyomo.contrib.solver.solvers.highs import Highs

    if model is None:
        return None
    result = Highs().solve(
        model,
        solver_options={**SOLVER_OPTIONS, **gaps},
        time_limit=time_limit,
        load_solutions=False,
        raise_exception_on_nonoptimal_result=False,
    )
    status = result.termination_condition
    if status in (TerminationCondition.provenInfeasible, TerminationCondition.infeasibleOrUnbounded):
        return None  # every variable is bounded, so the model is infeasible
    if status != TerminationCondition.convergenceCriteriaSatisfied:
        raise TangramError(
            f"the solver proved no optimum within search.time_limit = {time_limit:g} s ({status.name}); "
            "raise it, loosen search.diverse_gap, or ask for fewer solutions or batch sizes"
        )
    return model, result
