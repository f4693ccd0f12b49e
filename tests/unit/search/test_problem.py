"""Tables to problems: options, limits, and tables that cannot be used."""

import pandas as pd
import pytest
from synthetic_library import PRECISIONS, library, limit, score

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.config import Target
from tangram.errors import TangramError
from tangram.search.problem import is_usable, layers_of, options_of


def test_linear_forms_add_up_to_the_prediction():
    tables = library(0, 3, head=PRECISIONS)
    constraints = [limit(quantity, 0.7) for quantity in ("latency", "time_to_first_token", "memory")]
    constraints += [limit("throughput", 1.3), limit("parameters", 2.0, None, relative=False)]
    problem = tables.problem({"constraints": constraints})
    resources = problem.resources({"chat": 4})
    last = [problem.group_of.tolist().index(group) + len(problem.options[group]) - 2 for group in range(4)]
    architecture = Architecture.of(group[-2].choice for group in problem.options)
    for row, constraint in enumerate(problem.target.constraints):
        used = resources.usage[row, last].sum() + resources.fixed[row]
        slack = problem.slack(constraint, architecture, {"chat": 4})
        assert used == pytest.approx(1 / (1 + slack) if constraint.quantity == "throughput" else 1 - slack)


def test_options_are_pairs_and_an_exact_score_overrides_the_sum():
    rows = [score(0, "attention", "no-op", 0.5), score(0, "ffn", "linear", -0.25), score(1, "ffn", "linear", 1.0)]
    rows += [score(0, "block", "no-op+linear", 0.2), score(0, "block", "gqa-1+parent", 0.1)]
    rows += [score(0, "attention", "parent", 7.0), score(0, "ffn", "linear", 9.0, metric="lm_loss_increase")]
    rows += [score(0, "head", "parent@int8", 0.3), score(0, "head", "parent@bf16", 0.01)]
    first, second, head = options_of(pd.DataFrame(rows), "kl", 2)
    assert {o.choice: (o.score, o.parts) for o in first} == {
        LayerChoice(): (0.0, (0.0, 0.0)),
        LayerChoice("parent", "linear"): (-0.25, (0.0, -0.25)),
        LayerChoice("no-op", "parent"): (0.5, (0.5, 0.0)),
        LayerChoice("no-op", "linear", coupled=True): (0.2, None),
        LayerChoice("gqa-1", "parent", coupled=True): (0.1, None),
    }
    assert [o.choice for o in second] == [LayerChoice(), LayerChoice("parent", "linear")]
    assert [(o.choice, o.score) for o in head] == [("parent", 0.0), ("parent@bf16", 0.01), ("parent@int8", 0.3)]


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("scores", lambda t: t.assign(value=float("nan")), "scores: attention 'gqa-1' of layer 0 is nan"),
        ("scores", lambda t: pd.concat([t, t]), "appears twice"),
        ("scores", lambda t: t.assign(layer=5), "does not belong to a parent of 2 layers"),
        ("scores", lambda t: t.assign(kind="head", layer=1), "head 'gqa-1' of layer 1 does not belong"),
        ("scores", lambda t: t.assign(metric="agreement"), "no metric 'kl'"),
        ("costs", lambda t: pd.concat([t, t]), "appears twice"),
        ("costs", lambda t: t.assign(parent_seconds=0.0), "costs: attention 'parent', scenario 'chat', prefill"),
        ("costs", lambda t: t.query("variant != 'gqa-1'"), "no row of attention 'gqa-1'"),
        ("costs", lambda t: t.query("kind != 'head'"), "no row of head 'parent'"),
        ("costs", lambda t: t.query("phase != 'decode'"), "no decode seconds"),
        ("calibration", lambda t: t.assign(scale=float("nan")), "scale nan"),
        ("calibration", lambda t: t.query("phase == 'decode'"), "calibration holds no prefill row"),
    ],
)
def test_unusable_tables_are_named(by_hand, table, change, message):
    setattr(by_hand, table, change(getattr(by_hand, table)))
    with pytest.raises(TangramError, match=message) as error:
        by_hand.problem({"constraints": [limit("throughput", 1.0)]}).resources({"chat": 2})
    assert "\n" not in str(error.value)


def test_parent_that_never_fits_cannot_be_a_reference(by_hand):
    constraints = [limit("throughput", 1.0), limit("memory", 10.0, relative=False)]
    problem = by_hand.problem({"constraints": constraints})
    with pytest.raises(TangramError, match="relative_to_parent: false"):
        problem.resources({"chat": 2})


def test_layers_of_a_parent(tmp_path):
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 7}')
    assert layers_of(tmp_path) == 7
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TangramError, match="not a readable model config"):
        layers_of(tmp_path)


def test_a_target_uses_what_its_engine_and_formats_can_express():
    names = ["parent@int8", "parent@q8_0", "linear", "lowrank-8", "no-op+width-0.5@bf16", "no-op+linear"]

    def usable(**settings):
        target = Target.model_validate({"constraints": [limit("parameters", 0.5, None)], **settings})
        return [name for name in names if is_usable(name, target)]

    assert usable() == [name for name in names if name != "parent@q8_0"]
    assert usable(engine="llama.cpp") == ["parent@q8_0", "linear", *names[4:]]
    assert usable(export=["decilm"]) == ["parent@int8", "linear", *names[4:]]
    assert usable(engine="llama.cpp", export=["hf"]) == ["no-op+width-0.5@bf16"]
