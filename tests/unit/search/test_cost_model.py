"""Costs by hand calculation."""

import pandas as pd
import pytest
from synthetic_library import PRECISIONS, library, limit

from tangram.blocks.architecture import Architecture, LayerChoice

PARENT = Architecture((LayerChoice(),) * 2)
TARGET = {"constraints": [limit("throughput", 1.0)]}


def test_prediction_by_hand(by_hand):
    costs = by_hand.problem(TARGET).costs
    parent = costs.predict(PARENT, "chat", 2)
    # Prefill 2·(2 + 3) + 5 = 15 s; a step 2 · 1.5 s = 3 s; 10 steps.
    assert parent.time_to_first_token == pytest.approx(15)
    assert parent.latency == pytest.approx(45)
    assert parent.throughput == pytest.approx(2 * 16 / 45)
    assert parent.parameters == (2 * 1200 + 1000) / 4
    assert parent.memory == 3400 + 2 * 16 * 16
    assert parent.kv_bytes_per_token == 16
    # By its own job gqa-1 takes half of the parent's time: of the parent's median over the three jobs, 2 s.
    child = costs.predict(Architecture((LayerChoice("gqa-1"), LayerChoice("no-op", "no-op"))), "chat", 2)
    assert child.time_to_first_token == pytest.approx(1 + 3 + 5)
    assert child.latency == pytest.approx(9 + 10 * 2 * 0.9)
    assert child.memory == 200 + 800 + 1000 + 2 * 16 * 4


def test_a_layer_costs_what_its_class_costs(by_hand):
    slower = by_hand.costs.query("kind == 'ffn'").assign(layer_class=1)
    slower[["seconds", "parent_seconds"]] *= 10
    by_hand.costs = pd.concat([by_hand.costs, slower], ignore_index=True)
    costs = by_hand.problem(TARGET).costs
    assert costs.predict(PARENT, "chat", 2).time_to_first_token == pytest.approx(2 + 3 + 2 + 30 + 5)


def test_parameters_count_weights_and_not_bytes():
    tables = library(0, 2, PRECISIONS, PRECISIONS, head=PRECISIONS)
    costs = tables.problem(TARGET).costs
    parent, *others = (
        costs.predict(Architecture((LayerChoice(variant, variant),) * 2, variant), "chat", 4)
        for variant in ("parent", "parent@bf16", "parent@int8")
    )
    assert [other.parameters for other in others] == [parent.parameters] * 2
    kv_cache = 4 * (128 + 32) * parent.kv_bytes_per_token
    embedding = costs.sizes(0, "model", "parent").parameter_bytes
    weights = parent.memory - kv_cache - embedding
    assert [other.memory - kv_cache - embedding for other in others] == [weights / 2, weights / 4]
