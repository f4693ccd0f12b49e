"""The solutions against brute force, their order, and what their proofs say."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from brute_force import BruteForce
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_library import CHAT, PRECISIONS, SUMMARY, VARIANTS, in_llama_cpp, library, limit

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.config import Scenario, Search, Target
from tangram.errors import TangramError
from tangram.search.solve import solve

SEARCH = Search()
EXACT = Search(diverse_gap=0.0)
QUANTITIES = ("throughput", "latency", "time_to_first_token", "memory", "parameters", "kv_bytes_per_token")


@st.composite
def constraint(draw, scenarios: list[str]) -> dict:
    quantity = draw(st.sampled_from(QUANTITIES))
    scenario = None if quantity in ("parameters", "kv_bytes_per_token") else draw(st.sampled_from(scenarios))
    value = draw(st.floats(0.9, 4.0) if quantity == "throughput" else st.floats(0.2, 1.05))
    return limit(quantity, value, scenario)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(),
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 3),
    pairs=st.sampled_from([0.0, 0.4, 1.0]),
    head=st.sampled_from([{}, PRECISIONS]),
)
def test_equals_brute_force(data, seed, layers, pairs, head):
    scenarios = {"chat": CHAT, "summary": SUMMARY} if data.draw(st.booleans()) else {"chat": CHAT}
    tables = library(seed, layers, **VARIANTS, scenarios=scenarios, pairs=pairs, head=head)
    constraints = data.draw(st.lists(constraint(list(scenarios)), min_size=1, max_size=3))
    expected = BruteForce(tables).best(constraints)
    problem = tables.problem({"constraints": constraints})
    if expected == np.inf:
        with pytest.raises(TangramError, match="infeasible"):
            solve(problem, SEARCH)
    else:
        (solution,) = solve(problem, SEARCH)
        assert solution.objective == pytest.approx(expected, abs=1e-9)
        assert solution.gap <= 1e-9


STUBS = {"attention": {"gqa-1": 0.7, "no-op": 0.0}, "ffn": {"linear": 0.5, "no-op": 0.2}}  # costs of stubs included


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 4),
    quantity=st.sampled_from(["latency", "memory"]),
    value=st.floats(0.1, 0.9),
    attention=st.sampled_from([STUBS["attention"], {"linear": 0.5, "no-op": 0.0}]),
    ffn=st.sampled_from([STUBS["ffn"], {"linear-unbiased": 0.5, "no-op": 0.2}]),
)
def test_llama_cpp_needs_a_stub_only_where_no_ffn_follows(seed, layers, quantity, value, attention, ffn):
    scenarios = {"chat": Scenario(prefill=128, generate=32, batch_sizes=(2,))}
    tables = in_llama_cpp(library(seed, layers, attention, ffn, scenarios=scenarios, noise=0.0))
    brute = BruteForce(tables)
    values = brute.values("chat", 2)[quantity]
    constraints = [limit(quantity, float(values.min() + value * (values[0] - values.min())), relative=False)]
    problem = tables.problem({"constraints": constraints, "engine": "llama.cpp"})
    (solution,) = solve(problem, SEARCH)
    assert solution.objective == pytest.approx(brute.best(constraints), abs=1e-9)
    batches = {"chat": 2}
    for index in np.random.default_rng(seed).integers(len(values), size=5):
        pairs = [LayerChoice(*brute.pairs[i]) for i in brute.chosen[index]]
        predicted = problem.predict(problem.target.constraints[0], Architecture(tuple(pairs)), batches)
        assert predicted == pytest.approx(values[index])


@pytest.mark.parametrize("seed", range(4))
def test_absolute_memory_also_bounds_the_parents_reference(seed):
    tables = library(seed, 2, **VARIANTS, scenarios={"chat": CHAT})
    brute = BruteForce(tables)
    memory = {batch: brute.values("chat", batch)["memory"].max() for batch in CHAT.batch_sizes}
    constraints = [limit("throughput", 1.3), limit("memory", (memory[2] + memory[8]) / 2, relative=False)]
    (solution,) = solve(tables.problem({"constraints": constraints}), SEARCH)
    assert solution.objective == pytest.approx(brute.best(constraints), abs=1e-9)


# The paper's chat 128/128, generation 128/1024 and summarization 2048/128, divided by 8.
PAPER = {
    "chat": Scenario(prefill=16, generate=16, batch_sizes=(1, 4, 16, 64)),
    "generation": Scenario(prefill=16, generate=128, batch_sizes=(1, 4, 16, 64)),
    "summarization": Scenario(prefill=256, generate=16, batch_sizes=(1, 4, 16)),
}


@pytest.mark.parametrize("seed", range(3))
def test_less_memory_allows_a_bigger_batch_in_every_scenario(seed):
    """With the limits, the parent fits with its second batch size, and not with its third."""
    tables = library(seed, 2, **VARIANTS, scenarios=PAPER, head=PRECISIONS)
    brute = BruteForce(tables)
    constraints, parent = [], {}
    for name, scenario in PAPER.items():
        memory = {batch: brute.values(name, batch)["memory"] for batch in scenario.batch_sizes}
        _, parent[name], third, *_ = scenario.batch_sizes
        least = max(memory[third].min(), memory[parent[name]][0])
        constraints.append(limit("memory", float((least + memory[third][0]) / 2), name, relative=False))
    constraints.append(limit("throughput", 1.5, "generation"))
    problem = tables.problem({"constraints": constraints})
    assert problem.usual_batches(problem.reference_parent) == parent
    (solution,) = solve(problem, SEARCH)
    assert solution.objective == pytest.approx(brute.best(constraints), abs=1e-9)
    assert solution.batches["generation"] > parent["generation"]
    index = [brute.pairs.index((choice.attention, choice.ffn)) for choice in solution.architecture.layers]
    row = int(np.flatnonzero((brute.chosen == index).all(1))[0])
    for constraint, (name, scenario) in zip(constraints, PAPER.items(), strict=False):  # all but generation: no speed
        values = {batch: brute.values(name, batch) for batch in scenario.batch_sizes}
        fitting = {b: v["throughput"][row] for b, v in values.items() if v["memory"][row] <= constraint["max"]}
        assert solution.batches[name] == max(fitting, key=lambda b: fitting[b])
    same = {**PAPER, "generation": Scenario(prefill=16, generate=128, batch_sizes=(parent["generation"],))}
    at_the_parent_s_batch = BruteForce(replace(tables, scenarios=same)).best(constraints)
    assert solution.objective < at_the_parent_s_batch


def test_the_batch_is_chosen_for_each_solution():
    """Of three solutions, each has batch sizes at which it satisfies all limits, and the grid's best for its score."""
    tables = library(1, 3, **VARIANTS, scenarios=PAPER)
    brute = BruteForce(tables)
    whole = brute.values("generation", 16)["memory"][0]
    constraints = [
        limit("memory", 0.9 * float(whole), "generation", relative=False),
        limit("throughput", 1.2, "generation"),
    ]
    problem = tables.problem({"constraints": constraints, "solutions": 3, "max_shared": 0.4})
    for solution in solve(problem, EXACT):
        assert problem.feasible(solution.architecture, solution.batches)
        index = [brute.pairs.index((choice.attention, choice.ffn)) for choice in solution.architecture.layers]
        row = int(np.flatnonzero((brute.chosen == index).all(1))[0])
        values = {batch: brute.values("generation", batch) for batch in PAPER["generation"].batch_sizes}
        fitting = {b: v["throughput"][row] for b, v in values.items() if v["memory"][row] <= constraints[0]["max"]}
        reference = max(v["throughput"][0] for v in values.values() if v["memory"][0] <= constraints[0]["max"])
        assert fitting[solution.batches["generation"]] >= 1.2 * reference * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_every_solution_equals_brute_force_under_the_cuts(seed):
    tables = library(seed, 3, **VARIANTS, scenarios={"chat": CHAT}, pairs=0.3)
    constraints = [limit("throughput", 1.4)]
    problem = tables.problem({"constraints": constraints, "solutions": 3, "max_shared": 0.4})
    solutions = solve(problem, EXACT)
    brute = BruteForce(tables)
    for number, solution in enumerate(solutions):
        earlier = [s.architecture for s in solutions[:number]]
        assert solution.objective == pytest.approx(brute.best(constraints, earlier, 0.4), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_solutions_with_heads_equal_brute_force_under_the_cuts(seed):
    tables = library(
        seed, 2, {"gqa-1": 0.7, "no-op": 0.0}, {"width-0.5": 0.6}, scenarios={"chat": CHAT}, head=PRECISIONS
    )
    constraints = [limit("throughput", 1.25)]
    problem = tables.problem({"constraints": constraints, "solutions": 4, "max_shared": 0.5})
    solutions, brute = solve(problem, EXACT), BruteForce(tables)
    for number, solution in enumerate(solutions):
        earlier = [s.architecture for s in solutions[:number]]
        assert solution.objective == pytest.approx(brute.best(constraints, earlier, 0.5), abs=1e-9)


def test_a_head_that_costs_nothing_in_quality_is_chosen():
    tables = library(0, 4, head=PRECISIONS)
    heads = tables.scores["kind"] == "head"
    tables.scores.loc[heads, "value"] = [1e-6, 2e-6]
    tables.scores.loc[~heads, "value"] = tables.scores.loc[~heads, "value"].abs() + 0.01
    (solution,) = solve(tables.problem({"constraints": [limit("throughput", 1.01)]}), SEARCH)
    assert (solution.architecture.head, solution.objective) == ("parent@bf16", 1e-6)


def test_another_head_makes_no_solution_diverse():
    tables = library(0, 1, {"no-op": 0.0}, {}, head=PRECISIONS)
    target = {"constraints": [limit("parameters", 1.0, None)], "solutions": 3, "max_shared": 0.5}
    with pytest.raises(TangramError, match="only 2 solutions"):  # three heads, but only two layers that differ
        solve(tables.problem(target), SEARCH)


def test_diverse_solutions_share_few_layers_and_state_their_gap():
    problem = library(1, 12).problem({"constraints": [limit("throughput", 1.4)], "solutions": 4, "max_shared": 0.7})
    solutions = solve(problem, SEARCH)
    assert len(solutions) == 4
    for one, other in itertools.combinations(solutions, 2):
        same = sum(a == b for a, b in zip(one.architecture.layers, other.architecture.layers, strict=True))
        assert same <= 0.7 * 12
    assert solutions[0].gap <= 1e-9
    for solution in solutions:
        assert solution.gap <= 1e-3 + 1e-9
        assert solution.objective >= solutions[0].objective
        assert solution.bound <= solution.objective


def test_the_parent_is_the_answer_where_it_is_best():
    tables = library(0, 4)
    tables.scores["value"] = tables.scores["value"].abs() + 0.01
    same = [limit(q, 1.0) for q in ("throughput", "latency", "time_to_first_token", "memory")]
    (solution,) = solve(tables.problem({"constraints": same}), SEARCH)
    assert solution.architecture == Architecture((LayerChoice(),) * 4)
    assert solution.objective == 0.0
    assert solution.gap == 0.0


def test_ties_go_to_the_faster_batch():
    tables = library(2, 3, scenarios={"chat": CHAT})
    tables.scores["value"] = 0.0
    problem = tables.problem(Target.model_validate({"constraints": [limit("throughput", 1.0)]}))
    (solution,) = solve(problem, SEARCH)
    speeds = {b: problem.costs.predict(solution.architecture, "chat", b).throughput for b in CHAT.batch_sizes}
    assert solution.batches["chat"] == max(speeds, key=lambda b: speeds[b])


def test_shadow_price_predicts_what_loosening_a_limit_gains():
    tables = library(4, 24)

    def best(factor):
        return solve(tables.problem({"constraints": [limit("parameters", factor, None)]}), SEARCH)[0]

    tight, loose = best(0.6), best(0.6 * 1.05)
    (price,) = tight.shadow_prices
    assert price > 0
    assert tight.objective - loose.objective == pytest.approx(5 * price, rel=0.5)
