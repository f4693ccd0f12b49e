"""Layers dropped, by hand calculation."""

import pytest
from synthetic_library import PRECISIONS, by_sum_of_no_ops, library, limit

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.errors import TangramError
from tangram.search.drop_layers import drop_whole_layers


@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0, 99.0])
def test_as_many_are_dropped_as_stay_at_or_below_the_speed(factor):
    tables = library(3, 8)
    problem = tables.problem({"constraints": [limit("throughput", factor)]})
    architecture, batches, dropped = drop_whole_layers(problem)
    assert batches == {"chat": 4}
    assert set(dropped) == set(by_sum_of_no_ops(tables)[: len(dropped)])
    assert [c == LayerChoice("no-op", "no-op") for c in architecture.layers] == [layer in dropped for layer in range(8)]
    assert all(c == LayerChoice() for layer, c in enumerate(architecture.layers) if layer not in dropped)

    def speed(count: int) -> float:
        # All layers cost the same, so only the number counts.
        model = [LayerChoice("no-op", "no-op")] * count + [LayerChoice()] * (8 - count)
        return problem.costs.predict(Architecture(tuple(model)), "chat", 4).throughput

    fastest = factor * speed(0)
    assert len(dropped) == max(n for n in range(8) if n == 0 or speed(n) <= fastest * (1 + 1e-8))


def test_without_throughput_the_fewest_that_satisfy_are_dropped():
    problem = library(3, 8).problem({"constraints": [{"quantity": "kv_bytes_per_token", "max": 0.7}]})
    architecture, batches, dropped = drop_whole_layers(problem)
    assert len(dropped) == 3  # 5/8 <= 0.7 < 6/8
    assert batches == {}
    assert problem.feasible(architecture, batches)


NO_OP = {"no-op": 0.0}


def precise(factor: float, loss: float):
    """Return a problem of eight layers in which every piece of a precision loses ``loss``, and no-ops lose 1."""
    tables = library(3, 8, {**PRECISIONS, **NO_OP}, {**PRECISIONS, **NO_OP}, head=PRECISIONS)
    tables.scores["value"] = loss
    dropped = tables.scores["variant"] == "no-op"
    tables.scores.loc[dropped, "value"] = 1 + 0.01 * tables.scores.loc[dropped, "layer"]
    return tables.problem({"constraints": [limit("throughput", factor)]})


def dropped_from(problem, variant: str, count: int) -> Architecture:
    """Return the architecture that drops the first layers, which lose least, and keeps the rest in one variant."""
    rest = (LayerChoice(variant, variant),) * (problem.num_layers - count)
    return Architecture((LayerChoice("no-op", "no-op"),) * count + rest, variant)


@pytest.mark.parametrize("loss", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("factor", [1.3, 2.0, 3.0])
def test_the_best_precision_of_the_rest_is_kept(factor, loss):
    problem = precise(factor, loss)
    reference = problem.costs.predict(problem.parent, "chat", 4).throughput

    def speed(architecture: Architecture) -> float:
        return problem.costs.predict(architecture, "chat", 4).throughput / reference

    best = []
    for variant in ("parent", "parent@bf16", "parent@int8"):
        candidates = [dropped_from(problem, variant, count) for count in range(8)]
        slow = [candidate for candidate in candidates if speed(candidate) <= factor * (1 + 1e-8)]
        best.append(slow[-1] if slow else candidates[0])
    expected = min(best, key=problem.objective)
    architecture, batches, dropped = drop_whole_layers(problem)
    assert architecture == expected
    assert batches == {"chat": 4}
    assert list(dropped) == [i for i, c in enumerate(expected.layers) if c == LayerChoice("no-op", "no-op")]


def test_a_precision_that_is_nearly_free_drops_fewer_layers():
    (cheap, _, few), (_, _, many) = drop_whole_layers(precise(2.0, 1e-3)), drop_whole_layers(precise(2.0, 10.0))
    assert cheap.head != "parent"
    assert len(few) < len(many)


def test_without_throughput_a_precision_may_satisfy_alone():
    tables = library(3, 2, {**PRECISIONS, **NO_OP}, {**PRECISIONS, **NO_OP}, head=PRECISIONS)
    constraint = {"quantity": "memory", "max": 0.55, "scenario": "chat", "relative_to_parent": True}
    problem = tables.problem({"constraints": [constraint]})
    architecture, batches, _ = drop_whole_layers(problem)
    assert problem.feasible(architecture, batches)
    assert not problem.feasible(dropped_from(problem, "parent", 1), batches)  # the most that can be dropped
    constraint["max"] = 1e-3
    with pytest.raises(TangramError, match="no number of dropped layers"):
        drop_whole_layers(tables.problem({"constraints": [constraint]}))


def test_layers_cannot_be_dropped_without_no_op():
    tables = library(0, 3, ffn={"width-0.5": 0.6})
    with pytest.raises(TangramError, match=r"no 'no-op' of ffn for layer 0; add it to library.ffn"):
        drop_whole_layers(tables.problem({"constraints": [limit("throughput", 1.2)]}))
