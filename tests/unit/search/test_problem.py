"""Tables to problems: costs by hand calculation, candidates, and tables that cannot be used."""

import pandas as pd
import pytest
from synthetic_library import Library, cost, library, score

from tangram.blocks.architecture import LayerChoice
from tangram.config import Scenario
from tangram.errors import TangramError
from tangram.search.problem import candidates_of, parent_facts

TARGET = {"constraints": [{"quantity": "throughput", "min": 1.0, "scenario": "chat"}]}


@pytest.fixture
def by_hand() -> Library:
    """Two layers, numbers that can be added up on paper; the job of 'gqa-1' ran while the machine was twice as slow."""
    costs = []
    for phase, unit in (("prefill", 1.0), ("decode", 0.1)):
        for kind, variant, seconds, parent, size, kv in (
            ("attention", "parent", 2.0, 2.0, 400, 8),
            ("attention", "gqa-1", 2.0, 4.0, 200, 4),
            ("attention", "no-op", 0.0, 2.0, 0, 0),
            ("ffn", "parent", 3.0, 3.0, 800, 0),
            ("ffn", "no-op", 0.0, 3.0, 0, 0),
            ("model", "parent", 5.0, 5.0, 1000, 0),
        ):
            sizes = {"parameter_bytes": size, "kv_bytes_per_token": kv}
            costs.append(cost(kind, variant, "chat", phase, 2, seconds * unit, parent * unit, **sizes))
    rows = [
        {"model": "parent", "scenario": "chat", "phase": phase, "batch": 2, "scale": scale}
        | dict.fromkeys(("subblock_seconds", "fixed_seconds", "measured_seconds"), 1.0)
        for phase, scale in (("prefill", 1.0), ("decode", 2.0))
    ]
    scores = [
        score(layer, kind, variant, value + layer)
        for layer in (0, 1)
        for kind, variant, value in (("attention", "gqa-1", 0.1), ("attention", "no-op", 0.2), ("ffn", "no-op", 0.4))
    ]
    scenarios = {"chat": Scenario(prefill=6, generate=10, batch_sizes=(2,))}
    return Library(pd.DataFrame(scores), pd.DataFrame(costs), pd.DataFrame(rows), scenarios, 2)


def test_prediction_by_hand(by_hand):
    costs = by_hand.problem(TARGET).costs
    parent = costs.predict((LayerChoice(),) * 2, "chat", 2)
    # Prefill 2·(2 + 3) + 5 = 15 s; a step 2 · 1.5 s = 3 s; 10 steps.
    assert parent.time_to_first_token == pytest.approx(15)
    assert parent.latency == pytest.approx(45)
    assert parent.throughput == pytest.approx(2 * 16 / 45)
    assert parent.parameters == (2 * 1200 + 1000) / 4
    assert parent.memory == 3400 + 2 * 16 * 16
    assert parent.kv_bytes_per_token == 16
    # By its own job gqa-1 takes half of the parent's time: of the parent's median over the three jobs, 2 s.
    child = costs.predict((LayerChoice("gqa-1"), LayerChoice("no-op", "no-op")), "chat", 2)
    assert child.time_to_first_token == pytest.approx(1 + 3 + 5)
    assert child.latency == pytest.approx(9 + 10 * 2 * 0.9)
    assert child.memory == 200 + 800 + 1000 + 2 * 16 * 4


def test_linear_forms_add_up_to_the_prediction():
    tables = library(0, 3)
    quantities = ("latency", "time_to_first_token", "memory")
    target = {"constraints": [{"quantity": q, "max": 0.7, "scenario": "chat"} for q in quantities]}
    target["constraints"].append({"quantity": "throughput", "min": 1.3, "scenario": "chat"})
    target["constraints"].append({"quantity": "parameters", "max": 2.0, "relative_to_parent": False})
    problem = tables.problem(target)
    resources = problem.resources({"chat": 4})
    last = [problem.layer_of.tolist().index(layer) + len(problem.candidates[layer]) - 2 for layer in range(3)]
    architecture = tuple(layer[-2].choice for layer in problem.candidates)
    for row, constraint in enumerate(problem.target.constraints):
        used = resources.usage[row, last].sum() + resources.fixed[row]
        slack = problem.slack(constraint, architecture, {"chat": 4})
        assert used == pytest.approx(1 / (1 + slack) if constraint.quantity == "throughput" else 1 - slack)


def test_options_are_pairs_and_an_exact_score_overrides_the_sum():
    rows = [score(0, "attention", "no-op", 0.5), score(0, "ffn", "linear", -0.25), score(1, "ffn", "linear", 1.0)]
    rows += [score(0, "block", "no-op+linear", 0.2), score(0, "block", "gqa-1+parent", 0.1)]
    rows += [score(0, "attention", "parent", 7.0), score(0, "ffn", "linear", 9.0, metric="lm_loss_increase")]
    first, second = candidates_of(pd.DataFrame(rows), "kl", 2)
    assert {c.choice: (c.score, c.parts) for c in first} == {
        LayerChoice(): (0.0, (0.0, 0.0)),
        LayerChoice("parent", "linear"): (-0.25, (0.0, -0.25)),
        LayerChoice("no-op", "parent"): (0.5, (0.5, 0.0)),
        LayerChoice("no-op", "linear"): (0.2, None),
        LayerChoice("gqa-1", "parent"): (0.1, None),
    }
    assert [c.choice for c in second] == [LayerChoice(), LayerChoice("parent", "linear")]


def test_a_layer_costs_what_its_class_costs(by_hand):
    slower = by_hand.costs.query("kind == 'ffn'").assign(layer_class=1)
    slower[["seconds", "parent_seconds"]] *= 10
    by_hand.costs = pd.concat([by_hand.costs, slower], ignore_index=True)
    costs = by_hand.problem(TARGET).costs
    assert costs.predict((LayerChoice(),) * 2, "chat", 2).time_to_first_token == pytest.approx(2 + 3 + 2 + 30 + 5)


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("scores", lambda t: t.assign(value=float("nan")), "scores: attention 'gqa-1' of layer 0 is nan"),
        ("scores", lambda t: pd.concat([t, t]), "is there twice"),
        ("scores", lambda t: t.assign(layer=5), "does not belong to a parent of 2 layers"),
        ("scores", lambda t: t.assign(metric="agreement"), "no metric 'kl'"),
        ("costs", lambda t: pd.concat([t, t]), "is there twice"),
        ("costs", lambda t: t.assign(parent_seconds=0.0), "costs: attention 'parent', scenario 'chat', prefill"),
        ("costs", lambda t: t.query("variant != 'gqa-1'"), "no row of attention 'gqa-1'"),
        ("costs", lambda t: t.query("phase != 'decode'"), "no decode seconds"),
        ("calibration", lambda t: t.assign(scale=float("nan")), "scale nan"),
        ("calibration", lambda t: t.query("phase == 'decode'"), "calibration holds no prefill row"),
    ],
)
def test_unusable_tables_are_named(by_hand, table, change, message):
    setattr(by_hand, table, change(getattr(by_hand, table)))
    with pytest.raises(TangramError, match=message) as error:
        by_hand.problem(TARGET).resources({"chat": 2})
    assert "\n" not in str(error.value)


def test_parent_that_never_fits_cannot_be_a_reference(by_hand):
    memory = {"quantity": "memory", "max": 10.0, "scenario": "chat", "relative_to_parent": False}
    problem = by_hand.problem({"constraints": [*TARGET["constraints"], memory]})
    with pytest.raises(TangramError, match="relative_to_parent: false"):
        problem.resources({"chat": 2})


def test_parent_facts(tmp_path):
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 7, "dtype": "bfloat16"}')
    assert parent_facts(tmp_path) == (7, 2)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TangramError, match="not a readable model config"):
        parent_facts(tmp_path)
