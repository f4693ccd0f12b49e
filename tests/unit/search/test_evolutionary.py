"""The evolutionary search against trying everything, its budget, and its switches within the limits."""

import itertools

import numpy as np
import pytest
from synthetic_library import PRECISIONS, VARIANTS, in_llama_cpp, library, limit

from tangram.blocks.architecture import Architecture
from tangram.config import Evolution, Search
from tangram.search import rivals
from tangram.search.evolutionary import Mutations, evolve
from tangram.search.solve import solve

BATCHES, SEQUENCES = {"chat": 4}, 6


class Truth:
    """Scores with an interaction of neighbors, which no sum over the layers has, and an offset by sequence."""

    def __init__(self, problem):
        self.problem, self.calls = problem, []

    def mean(self, architecture: Architecture) -> float:
        scores = [option.score for option in self.problem.chosen(architecture)]
        return sum(scores) + 0.1 * sum(a != 0 and b != 0 for a, b in itertools.pairwise(scores))

    def __call__(self, architectures, sequences) -> np.ndarray:
        self.calls.append((len(architectures), list(sequences)))
        offsets = 0.1 * (np.array(sequences) - (SEQUENCES - 1) / 2)
        return np.array([self.mean(a) for a in architectures])[:, None] + offsets


def test_all_offspring_satisfy_the_limits_and_differ():
    constraints = [limit("throughput", 1.5), limit("memory", 0.8)]
    problem = library(0, 8, head=PRECISIONS).problem({"constraints": constraints})
    (solution,) = solve(problem, Search())
    mutations = Mutations(problem, BATCHES, np.random.default_rng(0))
    children = [mutations.offspring(solution.architecture) for _ in range(60)]
    assert all(child != solution.architecture and problem.feasible(child, BATCHES) for child in children)
    changed = [sum(a != b for a, b in zip(c.choices, solution.architecture.choices, strict=True)) for c in children]
    assert min(changed) >= 1
    assert 2 < max(changed) <= 6
    assert len(set(children)) > 30


def test_offspring_pay_for_no_stub_that_an_ffn_replaces():
    variants = {"linear": 0.3, "no-op": 0.0}
    tables = in_llama_cpp(library(1, 6, variants, variants))
    problem = tables.problem({"constraints": [limit("throughput", 1.5)], "engine": "llama.cpp"})
    (solution,) = solve(problem, Search())
    mutations = Mutations(problem, BATCHES, np.random.default_rng(0))
    children = [child for _ in range(20) if (child := mutations.offspring(solution.architecture)) is not None]
    assert children
    assert all(problem.feasible(child, BATCHES) for child in children)


@pytest.mark.parametrize("start", ["mip", "random"])
def test_the_best_of_all_is_found(start):
    problem = library(3, 3, **VARIANTS).problem({"constraints": [limit("throughput", 1.5)]})
    truth = Truth(problem)
    choices = [[option.choice for option in group] for group in problem.options]
    feasible = [a for c in itertools.product(*choices) if problem.feasible(a := Architecture.of(c), BATCHES)]
    best = min(feasible, key=truth.mean)
    solution = solve(problem, Search())[0].architecture
    first = solution if start == "mip" else rivals.run("random", problem, Search(), 1)[0]
    evolved = evolve(problem, BATCHES, first, truth, SEQUENCES, Evolution(evaluations=2000, offspring=8), 0)
    assert truth.mean(solution) > truth.mean(best)  # the sum of scores misleads
    assert evolved.architecture == best
    assert [value for _, value in evolved.curve] == sorted((value for _, value in evolved.curve), reverse=True)


def test_the_budget_holds_and_no_score_is_computed_twice():
    problem = library(2, 10).problem({"constraints": [limit("throughput", 1.6)]})
    truth, settings = Truth(problem), Evolution(evaluations=60, offspring=8, shares=(0.3, 1.0))
    first = solve(problem, Search())[0].architecture
    evolved = evolve(problem, BATCHES, first, truth, SEQUENCES, settings, 3)
    cells = sum(children * len(sequences) for children, sequences in truth.calls)
    generation = 8 * 2 + 3 * 6  # two sequences for all offspring, all sequences for the square root of them
    assert 0 <= cells - 60 * SEQUENCES < generation
    assert evolved.curve[-1][0] == cells / SEQUENCES
    assert sum(np.isfinite(values).sum() for values in evolved.values.values()) == cells
    assert evolved.curve[-1][1] <= evolved.curve[0][1] == pytest.approx(truth.mean(first))


def test_the_seed_determines_the_search():
    problem = library(2, 10).problem({"constraints": [limit("throughput", 1.6)]})
    first, settings = solve(problem, Search())[0].architecture, Evolution(evaluations=40, offspring=6)

    def run(seed: int):
        return evolve(problem, BATCHES, first, Truth(problem), SEQUENCES, settings, seed)

    assert run(0).curve == run(0).curve
    assert list(run(0).values) == list(run(0).values) != list(run(1).values)
