"""The other searches of a target's `compare`: within the limits, reproducible, and never better than the optimum."""

import json

import numpy as np
import pytest
from synthetic_library import CHAT, library, limit

from tangram.commands.search_rival import search_rival
from tangram.config import LIGHT_SEARCHES, Search, Target, slice_of
from tangram.errors import TangramError
from tangram.search import rivals
from tangram.search.drop_layers import drop_whole_layers
from tangram.search.solutions import load_solutions
from tangram.search.solve import solve
from tangram.tables import CALIBRATION, COSTS, SCORES, write_table

SEARCH = Search()


def test_the_names_are_those_of_the_config():
    assert tuple(rivals.ALGORITHMS) == LIGHT_SEARCHES


@pytest.mark.parametrize("name", LIGHT_SEARCHES)
@pytest.mark.parametrize("seed", range(2))
def test_every_search_satisfies_the_limits_and_no_more(name, seed):
    problem = library(seed, 6, scenarios={"chat": CHAT}).problem({"constraints": [limit("throughput", 1.3)]})
    (solution,) = solve(problem, SEARCH)
    architecture, batches = rivals.run(name, problem, SEARCH, seed)
    assert problem.feasible(architecture, batches)
    assert problem.objective(architecture) >= solution.objective - 1e-9
    assert rivals.run(name, problem, SEARCH, seed) == (architecture, batches)
    if name in ("dynamic-program", "random-weights"):
        assert problem.objective(architecture) == pytest.approx(solution.objective)


def test_random_choices_depend_on_the_seed():
    problem = library(0, 8).problem({"constraints": [limit("throughput", 1.5)]})
    found = {rivals.run("random", problem, SEARCH, seed)[0] for seed in range(4)}
    assert len(found) == 4


def test_a_search_that_finds_nothing_names_itself_and_the_remedy():
    problem = library(0, 3, {"gqa-1": 0.7}, {"width-0.5": 0.6}).problem({"constraints": [limit("throughput", 9.0)]})
    for name in ("greedy", "same-pair", "no-op-only", "dynamic-program"):
        with pytest.raises(TangramError, match=rf"{name} finds no architecture.*leave {name} out of the target's comp"):
            rivals.run(name, problem, SEARCH, 0)


def test_layers_are_dropped_in_the_order_of_a_given_importance():
    problem = library(3, 8).problem({"constraints": [limit("throughput", 1.5)]})
    importance = np.random.default_rng(0).permutation(8).astype(float).tolist()
    _, _, dropped = drop_whole_layers(problem, importance)
    assert len(dropped) == len(drop_whole_layers(problem)[2])  # all layers cost the same
    assert list(dropped) == sorted(np.argsort(importance)[: len(dropped)].tolist())


def test_the_command_writes_an_architecture_and_its_numbers(tmp_path):
    tables = library(2, 6)
    names = {"scores": SCORES, "costs": COSTS, "calibration": CALIBRATION}
    for name, schema in names.items():
        write_table(getattr(tables, name), schema, tmp_path / f"{name}.parquet")
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 6, "dtype": "float32"}))
    target = Target.model_validate({"constraints": [limit("throughput", 1.4)]})
    arguments = {name: str(tmp_path / f"{name}.parquet") for name in names} | {"parent": str(tmp_path)}
    arguments["settings"] = slice_of({"target": target, "search": SEARCH, "scenarios": tables.scenarios})
    path = tmp_path / "greedy.json"
    search_rival(**arguments, rival="greedy", solutions=str(path))
    (entry,) = json.loads(path.read_text())["solutions"]
    problem = tables.problem(target)
    architecture, batches = rivals.run("greedy", problem, SEARCH, 0)
    assert load_solutions(path) == {"greedy": architecture}
    assert entry["batches"] == batches
    assert entry["sum_of_scores"] == pytest.approx(problem.objective(architecture))
    assert entry["scenarios"]["chat"]["speedup"] >= 1.4 * (1 - 1e-8)
    with pytest.raises(TangramError, match="'gredy' is not a search; did you mean 'greedy'"):
        search_rival(**arguments, rival="gredy", solutions=str(path))
