"""The dynamic program against the mixed-integer program, whose optimum it must reach but for the rounding of costs."""

from dataclasses import replace

import numpy as np
import pytest
from brute_force import BruteForce
from synthetic_library import PRECISIONS, VARIANTS, in_llama_cpp, library, limit

from tangram.config import Search
from tangram.errors import TangramError
from tangram.search.dynamic_program import UNITS, dynamic_program
from tangram.search.program import Program, minimize
from tangram.search.solve import solve

BATCHES = {"chat": 4}
LIMITS = [limit("throughput", 1.3), limit("throughput", 2.2), limit("memory", 0.713), limit("parameters", 0.613, None)]


def optimum(problem, tighter: float = 0.0) -> float:
    """Return the smallest sum of scores within a budget that is tighter by a share of the limit."""
    program = Program.of(problem, problem.scores, problem.resources(BATCHES))
    minimum = minimize(replace(program, budget=program.budget - tighter), 60)
    return np.inf if minimum is None else problem.objective(problem.architecture(minimum.values))


@pytest.mark.parametrize("constraint", LIMITS, ids=lambda constraint: f"{constraint['quantity']}")
@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_is_reached_but_for_the_rounding(seed, constraint):
    problem = library(seed, 7, pairs=0.2, head=PRECISIONS).problem({"constraints": [constraint]})
    best = optimum(problem)
    usage, budget = problem.resources(BATCHES).usage[0], problem.resources(BATCHES).budget[0]
    cheapest_usage = sum(usage[problem.group_of == group].min() for group in range(8))
    for units in (200, 2_000, UNITS):
        architecture = dynamic_program(problem, BATCHES, units)
        assert problem.feasible(architecture, BATCHES)
        rounding = 8 * (budget - cheapest_usage) / units
        assert best - 1e-9 <= problem.objective(architecture) <= optimum(problem, rounding) + 1e-9
    assert problem.objective(dynamic_program(problem, BATCHES)) == pytest.approx(best)


def test_coarse_units_lose_and_never_exceed_the_limit():
    problem = library(1, 8).problem({"constraints": [limit("throughput", 1.7)]})
    losses = [problem.objective(dynamic_program(problem, BATCHES, units)) for units in (10, 100, 10_000)]
    assert losses[0] > losses[1] >= losses[2]
    assert losses[2] == pytest.approx(solve(problem, Search())[0].objective)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_stubs_that_an_ffn_replaces_are_not_paid_for(seed, share):
    variants = {"linear": 0.3, "no-op": 0.0}
    tables = in_llama_cpp(library(seed, 3, variants, variants, noise=0.0))
    brute = BruteForce(tables)
    seconds = brute.values("chat", 4)["latency"]
    most = float(seconds.min() + share * (seconds[0] - seconds.min()))
    constraints = [limit("latency", most, relative=False)]
    problem = tables.problem({"constraints": constraints, "engine": "llama.cpp"})
    architecture = dynamic_program(problem, BATCHES)
    assert problem.feasible(architecture, BATCHES)
    assert problem.objective(architecture) == pytest.approx(brute.best(constraints), abs=1e-9)


def test_several_limits_and_unreachable_ones_are_errors():
    tables = library(0, 3, **VARIANTS)
    with pytest.raises(TangramError, match="takes one constraint, and the target has 2"):
        dynamic_program(tables.problem({"constraints": LIMITS[:2]}), BATCHES)
    with pytest.raises(TangramError, match="no architecture satisfies"):
        dynamic_program(tables.problem({"constraints": [limit("throughput", 1e6)]}), BATCHES)
