"""The solver's own limits: rounding in its bounds, and its time."""

from dataclasses import replace

import pytest
from brute_force import BruteForce
from synthetic_library import CHAT, VARIANTS, library, limit

from tangram.config import Search
from tangram.errors import TangramError
from tangram.search import program
from tangram.search.solve import solve


def test_a_bound_a_rounding_error_below_ends_the_search(monkeypatch):
    """The solver proves optimality up to rounding; asking for the last bits would ask the same program forever."""
    exact = program.minimize

    def rounded(*arguments, **options):
        minimum = exact(*arguments, **options)
        return minimum and replace(minimum, bound=minimum.objective - 1e-14)

    monkeypatch.setattr(program, "minimize", rounded)
    tables = library(1, 3, **VARIANTS, scenarios={"chat": CHAT})
    constraints = [limit("throughput", 1.4)]
    (solution,) = solve(tables.problem({"constraints": constraints}), Search())
    assert solution.objective == pytest.approx(BruteForce(tables).best(constraints), abs=1e-9)


def test_time_limit_never_passes_as_optimal():
    problem = library(0, 60).problem({"constraints": [limit("throughput", 1.37), limit("memory", 0.71)]})
    with pytest.raises(TangramError, match=r"no optimum within search.time_limit = 0.001 s"):
        solve(problem, Search(time_limit=1e-3))
