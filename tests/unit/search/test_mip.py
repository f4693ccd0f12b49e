"""The solver against brute force, its re-check against tampering, and its errors against what they promise."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_library import ELEMENT_BYTES, Library, library

from tangram.blocks.architecture import LayerChoice
from tangram.config import Scenario, Search, Target
from tangram.errors import TangramError
from tangram.search import mip
from tangram.search.mip import solve, verify

SEARCH = Search()
EXACT = Search(diverse_gap=0.0)
CHAT, SUMMARY = (
    Scenario(prefill=128, generate=32, batch_sizes=(2, 8)),
    Scenario(prefill=512, generate=8, batch_sizes=(1, 4)),
)


def limit(quantity: str, value: float, scenario: str | None = "chat", relative: bool = True) -> dict:
    side = "min" if quantity == "throughput" else "max"
    return {"quantity": quantity, side: value, "scenario": scenario, "relative_to_parent": relative}


class BruteForce:
    """Every architecture at every combination of batch sizes, straight from the tables' rows."""

    def __init__(self, tables: Library):
        self.tables = tables
        scores = {(r.layer, r.kind, r.variant): r.value for r in tables.scores.itertuples()}
        names = [["parent", *sorted({v for _, k, v in scores if k == kind})] for kind in ("attention", "ffn")]
        self.pairs = list(itertools.product(*names))  # the parent's first
        self.chosen = np.array(list(itertools.product(range(len(self.pairs)), repeat=tables.num_layers)))
        self.objectives = np.zeros(len(self.chosen))
        for layer in range(tables.num_layers):
            parts = [
                scores.get((layer, "attention", a), 0.0) + scores.get((layer, "ffn", f), 0.0) for a, f in self.pairs
            ]
            whole = [
                scores.get((layer, "block", f"{a}+{f}"), part) for (a, f), part in zip(self.pairs, parts, strict=True)
            ]
            self.objectives += np.array(whole)[self.chosen[:, layer]]
        clock, self.steady, self.sizes = {}, {}, {}
        for r in tables.costs.itertuples():
            clock.setdefault((r.kind, r.scenario, r.phase, r.batch), []).append(r.parent_seconds)
        for r in tables.costs.itertuples():
            workload = (r.scenario, r.phase, r.batch)
            seconds = r.seconds / r.parent_seconds * np.median(clock[r.kind, *workload])
            self.steady[r.kind, r.variant, *workload] = seconds
            self.sizes[r.kind, r.variant] = np.array([r.parameter_bytes, r.kv_bytes_per_token])
        self.scale = {(r.scenario, r.phase, r.batch): r.scale for r in tables.calibration.itertuples()}

    def total(self, value) -> np.ndarray:
        """Sum ``value(kind, variant)`` over the pieces of every architecture."""
        by_pair = np.array([value("attention", a) + value("ffn", f) for a, f in self.pairs])
        return by_pair[self.chosen].sum(1) + value("model", "parent")

    def values(self, scenario: str, batch: int) -> dict[str, np.ndarray]:
        prefill, step = (
            self.scale[scenario, phase, batch]
            * self.total(lambda kind, variant, phase=phase: self.steady[kind, variant, scenario, phase, batch])
            for phase in ("prefill", "decode")
        )
        parameter_bytes, kv_bytes = self.total(lambda kind, variant: self.sizes[kind, variant]).T
        workload = self.tables.scenarios[scenario]
        tokens = batch * (workload.prefill + workload.generate)
        latency = prefill + workload.generate * step
        return {
            "throughput": tokens / latency,
            "latency": latency,
            "time_to_first_token": prefill,
            "memory": parameter_bytes + tokens * kv_bytes,
            "parameters": parameter_bytes / ELEMENT_BYTES,
            "kv_bytes_per_token": kv_bytes,
        }

    def best(self, constraints: list[dict], earlier=(), max_shared: float = 1.0) -> float:
        """Return the smallest sum of scores, or infinity; ``earlier`` are architectures to share few layers with."""
        names = list(self.tables.scenarios)
        grids = [self.tables.scenarios[name].batch_sizes for name in names]
        values = {(n, b): self.values(n, b) for n, grid in zip(names, grids, strict=True) for b in grid}
        allowed = np.full(len(self.chosen), True)
        for architecture in earlier:
            other = [self.pairs.index((choice.attention, choice.ffn)) for choice in architecture]
            allowed &= (self.chosen == other).sum(1) <= max_shared * len(other) + 1e-9
        found = np.inf
        for batches in itertools.product(*grids):
            size = dict(zip(names, batches, strict=True))
            feasible = allowed.copy()
            for c in constraints:
                name = c["scenario"] or names[0]
                mine = values[name, size[name]][c["quantity"]]
                reference = mine[0] if c["relative_to_parent"] else 1.0
                if c["quantity"] == "throughput":
                    if c["relative_to_parent"]:
                        reference = self.parent_throughput(constraints, name, values)
                    feasible &= mine >= c["min"] * reference * (1 - 1e-9)
                else:
                    feasible &= mine <= c["max"] * reference * (1 + 1e-9)
            found = min(found, self.objectives[feasible].min(initial=np.inf))
        return found

    def parent_throughput(self, constraints, name, values) -> float:
        absolute = [c for c in constraints if c["scenario"] == name and not c["relative_to_parent"]]
        caps = [c["max"] for c in absolute if c["quantity"] == "memory"]
        grid = [values[name, b] for b in self.tables.scenarios[name].batch_sizes]
        return max(v["throughput"][0] for v in grid if all(v["memory"][0] <= cap for cap in caps))


VARIANTS = {"attention": {"gqa-1": 0.7, "no-op": 0.0}, "ffn": {"width-0.5": 0.6, "no-op": 0.0}}
QUANTITIES = ("throughput", "latency", "time_to_first_token", "memory", "parameters", "kv_bytes_per_token")


@st.composite
def constraint(draw, scenarios: list[str]) -> dict:
    quantity = draw(st.sampled_from(QUANTITIES))
    scenario = None if quantity in ("parameters", "kv_bytes_per_token") else draw(st.sampled_from(scenarios))
    value = draw(st.floats(0.9, 4.0) if quantity == "throughput" else st.floats(0.2, 1.05))
    return limit(quantity, value, scenario)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 10_000), layers=st.integers(1, 3), pairs=st.sampled_from([0.0, 0.4, 1.0]))
def test_equals_brute_force(data, seed, layers, pairs):
    scenarios = {"chat": CHAT, "summary": SUMMARY} if data.draw(st.booleans()) else {"chat": CHAT}
    tables = library(seed, layers, **VARIANTS, scenarios=scenarios, pairs=pairs)
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


def test_a_bound_a_rounding_error_below_the_value_ends_a_search(monkeypatch):
    """The solver proves optimality up to rounding; asking for the last bits would ask the same program forever."""
    exact = mip.optimise

    def rounded(*arguments, **options):
        outcome = exact(*arguments, **options)
        return outcome if options.get("relax") else outcome and replace(outcome, bound=outcome.objective - 1e-14)

    monkeypatch.setattr(mip, "optimise", rounded)
    tables = library(1, 3, **VARIANTS, scenarios={"chat": CHAT})
    constraints = [limit("throughput", 1.4)]
    (solution,) = solve(tables.problem({"constraints": constraints}), SEARCH)
    assert solution.objective == pytest.approx(BruteForce(tables).best(constraints), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_absolute_memory_also_bounds_the_parents_reference(seed):
    tables = library(seed, 2, **VARIANTS, scenarios={"chat": CHAT})
    brute = BruteForce(tables)
    memory = {batch: brute.values("chat", batch)["memory"].max() for batch in CHAT.batch_sizes}
    constraints = [limit("throughput", 1.3), limit("memory", (memory[2] + memory[8]) / 2, relative=False)]
    (solution,) = solve(tables.problem({"constraints": constraints}), SEARCH)
    assert solution.objective == pytest.approx(brute.best(constraints), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_every_rank_equals_brute_force_under_the_cuts(seed):
    tables = library(seed, 3, **VARIANTS, scenarios={"chat": CHAT}, pairs=0.3)
    constraints = [limit("throughput", 1.4)]
    problem = tables.problem({"constraints": constraints, "solutions": 3, "max_shared": 0.4})
    solutions = solve(problem, EXACT)
    brute = BruteForce(tables)
    for rank, solution in enumerate(solutions):
        earlier = [s.architecture for s in solutions[:rank]]
        assert solution.objective == pytest.approx(brute.best(constraints, earlier, 0.4), abs=1e-9)


def test_diverse_solutions_share_few_layers_and_state_their_gap():
    problem = library(1, 12).problem({"constraints": [limit("throughput", 1.4)], "solutions": 4, "max_shared": 0.7})
    solutions = solve(problem, SEARCH)
    assert len(solutions) == 4
    for one, other in itertools.combinations(solutions, 2):
        same = sum(a == b for a, b in zip(one.architecture, other.architecture, strict=True))
        assert same <= 0.7 * 12
    assert solutions[0].gap <= 1e-9
    for solution in solutions:
        assert solution.gap <= 1e-3 + 1e-9
        assert solution.objective >= solutions[0].objective
        assert solution.bound <= solution.objective


def test_too_many_diverse_solutions_is_an_error():
    problem = library(0, 2, {"no-op": 0.0}, {}).problem(
        {"constraints": [limit("parameters", 1.0, None)], "solutions": 9, "max_shared": 0.1}
    )
    with pytest.raises(TangramError, match="only 2 solutions share at most 10% of the layers"):
        solve(problem, SEARCH)


def test_the_parent_is_the_answer_where_it_is_best():
    tables = library(0, 4)
    tables.scores["value"] = tables.scores["value"].abs() + 0.01
    same = [limit(q, 1.0) for q in ("throughput", "latency", "time_to_first_token", "memory")]
    (solution,) = solve(tables.problem({"constraints": same}), SEARCH)
    assert solution.architecture == (LayerChoice(),) * 4
    assert solution.objective == 0.0
    assert solution.gap == 0.0


def _answer():
    problem = library(3, 6).problem({"constraints": [limit("throughput", 1.5)], "solutions": 2, "max_shared": 0.5})
    return problem, solve(problem, SEARCH)


def test_recheck_catches_every_tampering():
    problem, (first, second) = _answer()
    verify(problem, SEARCH, first)
    verify(problem, SEARCH, second, [first])
    parent = replace(first, architecture=problem.parent, objective=0.0, bound=0.0)
    unknown = (LayerChoice("gqa-3", "parent"), *first.architecture[1:])
    for tampered, earlier, message in [
        (replace(first, objective=first.objective - 1e-6), (), "not the sum of scores"),
        (replace(first, bound=first.bound - 1e-6), (), "does not prove"),
        (replace(first, architecture=first.architecture[:-1]), (), "once per layer"),
        (replace(first, architecture=unknown), (), "not a candidate"),
        (replace(first, batches={"chat": 5}), (), "not in the grid"),
        (parent, (), "exceeded"),
        (first, [first], "shares 6 layers"),
    ]:
        with pytest.raises(TangramError, match=message):
            verify(problem, SEARCH, tampered, earlier)


@pytest.mark.parametrize(
    ("constraints", "binding"),
    [
        ([limit("throughput", 50.0)], "throughput in 'chat'"),
        ([limit("latency", 1e-3, relative=False)], "latency in 'chat'"),
        ([limit("throughput", 1.1), limit("memory", 0.02)], "memory in 'chat'"),
        ([limit("parameters", 0.3, None), limit("kv_bytes_per_token", 1.0, None, relative=False)], "parameters"),
    ],
)
def test_an_infeasible_target_names_the_nearest_feasible_value(constraints, binding):
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


def test_time_limit_never_passes_as_optimal():
    problem = library(0, 60).problem({"constraints": [limit("throughput", 1.37), limit("memory", 0.71)]})
    with pytest.raises(TangramError, match=r"no optimum within search.time_limit = 0.001 s"):
        solve(problem, Search(time_limit=1e-3))


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
