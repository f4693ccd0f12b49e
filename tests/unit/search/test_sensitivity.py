import itertools
import math

import pytest
from brute_force import BruteForce
from synthetic_library import PRECISIONS, VARIANTS, library, limit

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.config import Search
from tangram.search.sensitivity import changes, moved, sensitivity
from tangram.search.solve import solve

SEARCH = Search()
TARGET = {"constraints": [limit("throughput", 1.3)], "solutions": 2}


def test_only_the_variants_times_move_and_never_below_zero():
    costs = library(0, 2, head=PRECISIONS).costs.assign(ratio_error=0.1)
    found = moved(costs, "ffn", "linear", -1.96)
    picked = (costs["kind"] == "ffn") & (costs["variant"] == "linear")
    assert found[~picked].equals(costs[~picked])
    expected = (costs["seconds"] - 0.196 * costs["parent_seconds"]).clip(lower=0)
    assert found["seconds"][picked].tolist() == pytest.approx(expected[picked].tolist())
    assert (found["seconds"][picked] == 0).all(), "its time is 0.15 of the parent's"
    longer = moved(costs, "ffn", "linear", 1.96)["seconds"] - costs["seconds"]
    assert longer[picked].tolist() == pytest.approx((0.196 * costs["parent_seconds"])[picked].tolist())


def test_changes_count_subblocks_by_both_variants():
    one = Architecture((LayerChoice("no-op", "parent"), LayerChoice("no-op", "linear")), "parent")
    other = Architecture((LayerChoice("linear", "parent"), LayerChoice("linear", "no-op")), "parent@bf16")
    assert changes(one, other) == {
        "attention: no-op to linear": 2,
        "ffn: linear to no-op": 1,
        "head: parent to parent@bf16": 1,
    }
    assert changes(one, one) == {}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_changes_are_those_that_brute_force_finds(seed):
    tables = library(seed, 3, **VARIANTS)
    tables.costs["ratio_error"] = 0.15
    problem = tables.problem(TARGET)
    best = solve(problem, SEARCH)[0].architecture
    objective = problem.objective(best)
    records = sensitivity(problem, SEARCH, best, tables.costs, tables.calibration)
    names = {(kind, variant) for kind, variants in VARIANTS.items() for variant in variants}
    assert {(r["kind"], r["variant"], r["end"]) for r in records} == {
        (*name, end) for name, end in itertools.product(names, ("shorter", "longer"))
    }
    for record in records:
        sign = {"shorter": -1.96, "longer": 1.96}[record["end"]]
        other = library(seed, 3, **VARIANTS)
        other.costs = moved(tables.costs, record["kind"], record["variant"], sign)
        optimum = BruteForce(other).best(TARGET["constraints"])
        assert record["feasible"] == (optimum < math.inf)
        assert bool(record["changes"]) == (record["feasible"] and abs(optimum - objective) > 1e-9), record
    assert any(record["changes"] for record in records), "nothing was tested"
