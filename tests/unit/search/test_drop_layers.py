"""Layers dropped, by hand calculation."""

import pytest
from synthetic_library import by_sum_of_no_ops, library, limit

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


def test_layers_cannot_be_dropped_without_no_op():
    tables = library(0, 3, ffn={"width-0.5": 0.6})
    with pytest.raises(TangramError, match=r"no 'no-op' of ffn for layer 0; add it to library.ffn"):
        drop_whole_layers(tables.problem({"constraints": [limit("throughput", 1.2)]}))
