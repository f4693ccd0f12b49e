"""The limits of rounds: geometric steps from the parent's values to the target's, which no later round loosens."""

import dataclasses
import itertools

import pytest
from synthetic_library import CHAT, VARIANTS, library, limit

from tangram.config import Search
from tangram.rounds.waypoints import HALVINGS, on_the_way, waypoint
from tangram.search.solve import solve

TABLES = library(5, 3, **VARIANTS, scenarios={"chat": CHAT})
PARENT = TABLES.problem({"constraints": [limit("throughput", 1.0)]})
FASTER = 1.5 * PARENT.costs.predict(PARENT.parent, "chat", 8).throughput
CASES = {
    "throughput": [limit("throughput", 2.0)],
    "absolute": [limit("throughput", FASTER, relative=False)],
    "latency": [limit("latency", 0.5)],
    "parameters": [limit("parameters", 0.4, None)],
    "two": [limit("throughput", FASTER, relative=False), limit("memory", 6e7, relative=False)],
}


def values(problem, batches):
    return [problem.limit(constraint, batches) for constraint in problem.target.constraints]


@pytest.mark.parametrize("name", CASES)
def test_steps_are_geometric_and_end_at_the_target(name):
    problem = TABLES.problem({"constraints": CASES[name]})
    batches = problem.usual_batches(problem.parent)
    start = [problem.predict(constraint, problem.parent, batches) for constraint in problem.target.constraints]
    ends = values(problem, batches)
    for share in (0.25, 0.5, 1.0):
        for first, end, value in zip(start, ends, values(on_the_way(problem, share), batches), strict=True):
            assert value == pytest.approx(first ** (1 - share) * end**share)
    assert on_the_way(problem, 1).target == problem.target


def test_a_limit_that_the_parent_satisfies_stays():
    problem = TABLES.problem({"constraints": [limit("throughput", 0.5), limit("parameters", 0.5, None)]})
    loose, other = on_the_way(problem, 0.5).target.constraints
    assert loose == problem.target.constraints[0]
    assert other.max == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("name", CASES)
def test_an_architecture_within_the_target_is_within_all_rounds(name):
    problem = TABLES.problem({"constraints": CASES[name]})
    architecture = solve(problem, Search())[0].architecture
    earlier = on_the_way(problem, 1 / 3)
    feasible = 0
    for batches in problem.batch_grid():
        for group in itertools.product(*problem.options):
            chosen = type(architecture).of(option.choice for option in group)
            if problem.feasible(chosen, batches):
                feasible += 1
                assert earlier.feasible(chosen, batches)
    assert feasible


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rounds", [2, 3])
def test_a_round_loses_its_part_at_the_nearest_limits(name, rounds):
    problem = TABLES.problem({"constraints": CASES[name]})
    whole = solve(problem, Search())[0].objective
    steps = range(2**HALVINGS + 1)
    losses = [solve(on_the_way(problem, step / 2**HALVINGS), Search())[0].objective for step in steps]
    nearest = next(step for step, loss in enumerate(losses) if loss >= whole / rounds)
    found, solution = waypoint(problem, Search(), rounds)
    assert found.target == on_the_way(problem, nearest / 2**HALVINGS).target
    assert solution.objective == losses[nearest]
    assert waypoint(problem, Search(), 1)[0] is problem


def test_a_way_without_loss_is_gone_at_once():
    problem = TABLES.problem({"constraints": CASES["throughput"]})
    free = tuple(tuple(dataclasses.replace(o, score=0.0, parts=None) for o in group) for group in problem.options)
    problem = dataclasses.replace(problem, options=free)
    assert waypoint(problem, Search(), 3)[0] is problem
