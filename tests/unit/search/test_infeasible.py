"""The errors of targets without a solution, against what they promise."""

import re

import pytest
from synthetic_library import CHAT, library, limit

from tangram.config import Search
from tangram.errors import TangramError
from tangram.search.solve import solve

SEARCH = Search()


@pytest.mark.parametrize(
    ("constraints", "binding"),
    [
        ([limit("throughput", 50.0)], "throughput in 'chat'"),
        ([limit("latency", 1e-3, relative=False)], "latency in 'chat'"),
        ([limit("throughput", 1.1), limit("memory", 0.02)], "memory in 'chat'"),
        ([limit("parameters", 0.3, None), limit("kv_bytes_per_token", 1.0, None, relative=False)], "parameters"),
    ],
)
def test_the_constraint_and_a_nearest_feasible_value_are_named(constraints, binding):
    # The cheapest variants are not free, so that no limit goes to nothing.
    tables = library(5, 5, {"gqa-1": 0.6, "no-op": 0.0}, {"width-0.5": 0.5}, scenarios={"chat": CHAT})
    with pytest.raises(TangramError, match=f"infeasible: {binding}") as error:
        solve(tables.problem({"constraints": constraints}), SEARCH)
    message = str(error.value)
    assert "\n" not in message
    row = next(i for i, c in enumerate(constraints) if c["quantity"] == binding.split(" in ")[0])
    side = "min" if constraints[row]["quantity"] == "throughput" else "max"
    value = float(re.search(rf"\(feasible: {binding} [<>]= ([\d.e+-]+)", message)[1])

    def solved(nearest: float):
        loosened = [{**c, side: nearest} if i == row else c for i, c in enumerate(constraints)]
        return solve(tables.problem({"constraints": loosened}), SEARCH)

    assert solved(value)
    with pytest.raises(TangramError, match="infeasible"):
        solved(value * (1.01 if side == "min" else 0.99))


def test_two_unreachable_limits_are_both_named():
    problem = library(5, 4).problem({"constraints": [limit("throughput", 99.0), limit("parameters", 1e-4, None)]})
    with pytest.raises(TangramError, match=r"throughput.* or parameters.*loosening one is not enough"):
        solve(problem, SEARCH)


def test_too_many_diverse_solutions_is_an_error():
    problem = library(0, 2, {"no-op": 0.0}, {}).problem(
        {"constraints": [limit("parameters", 1.0, None)], "solutions": 9, "max_shared": 0.1}
    )
    with pytest.raises(TangramError, match="only 2 solutions share at most 10% of the layers"):
        solve(problem, SEARCH)
