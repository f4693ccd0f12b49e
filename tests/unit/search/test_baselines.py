"""The baselines against the limits and the proven optimum."""

import itertools

import pytest
from synthetic_library import by_sum_of_no_ops, library, limit

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.config import Scenario, Search
from tangram.search import baselines
from tangram.search.solve import solve

SEARCH, BATCHES = Search(), {"chat": 4}


@pytest.mark.parametrize("seed", range(2))
def test_no_baseline_beats_the_optimum(seed):
    tables = library(seed, 8, scenarios={"chat": Scenario(prefill=64, generate=16, batch_sizes=(4,))})
    problem = tables.problem({"constraints": [limit("throughput", 1.5)]})
    (solution,) = solve(problem, SEARCH)
    architectures = {
        "uniform": baselines.uniform(problem, solution.batches),
        "random": baselines.random_choice(problem, solution.batches, seed),
        "max parameters": baselines.max_parameters(problem, BATCHES, SEARCH),
        "no-op only": baselines.no_op_only(problem, SEARCH),
        "greedy": baselines.greedy(problem, solution.batches),
    }
    for name, architecture in architectures.items():
        assert problem.feasible(architecture, solution.batches), name
        assert problem.objective(architecture) >= solution.objective - 1e-9, name
    assert len(set(architectures["uniform"].layers)) == 1
    assert architectures["random"] == baselines.random_choice(problem, solution.batches, seed)
    assert architectures["random"] != baselines.random_choice(problem, solution.batches, seed + 1)
    variants = {variant for _, _, variant in architectures["no-op only"].pieces()}
    assert variants <= {"parent", "no-op"}


def test_max_parameters_and_no_op_only_equal_brute_force():
    problem = library(4, 3, {"gqa-1": 0.7, "no-op": 0.0}, {"width-0.5": 0.5, "no-op": 0.0}).problem(
        {"constraints": [limit("throughput", 1.4)]}
    )
    choices = [[option.choice for option in group] for group in problem.options]
    feasible = [a for c in itertools.product(*choices) if problem.feasible(a := Architecture.of(c), BATCHES)]

    def parameters(architecture) -> float:
        return problem.costs.predict(architecture, "chat", 4).parameters

    most = baselines.max_parameters(problem, BATCHES, SEARCH)
    assert parameters(most) >= max(map(parameters, feasible)) * (1 - 1e-3)
    plain = [a for a in feasible if {variant for _, _, variant in a.pieces()} <= {"parent", "no-op"}]
    best = baselines.no_op_only(problem, SEARCH)
    assert problem.objective(best) == pytest.approx(min(map(problem.objective, plain)))


def test_greedy_serves_easy_layers_first_and_hands_on_the_rest():
    tables = library(6, 2, {"no-op": 0.0}, {"no-op": 0.0}, noise=0.0)
    problem = tables.problem({"constraints": [limit("throughput", 1.01)]})
    resources = problem.resources(BATCHES)
    easy = by_sum_of_no_ops(tables)[0]
    own = resources.usage[0, :-1].reshape(2, 4)  # options of a layer: parent, ffn no-op, attention no-op, both
    scores = problem.scores[:-1].reshape(2, 4)
    half = (resources.budget[0] - resources.usage[0, -1]) / 2  # the head is the parent's
    first = min((j for j in range(4) if own[easy, j] <= half), key=lambda j: scores[easy, j])
    rest = 2 * half - own[easy, first]
    second = min((j for j in range(4) if own[1 - easy, j] <= rest), key=lambda j: scores[1 - easy, j])
    expected = {easy: problem.options[easy][first].choice, 1 - easy: problem.options[1 - easy][second].choice}
    assert baselines.greedy(problem, BATCHES) == Architecture((expected[0], expected[1]))
    assert expected[1 - easy] == LayerChoice() or expected[easy] != LayerChoice()
