"""Layers dropped, by hand calculation."""

import json

import pandas as pd
import pytest
import torch
from synthetic_library import PRECISIONS, by_sum_of_no_ops, library, limit
from tiny_models import random_model, tiny_config

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.commands.drop_layers import drop_layers
from tangram.commands.score_layers import score_layers
from tangram.config import Scores, Search, Target, slice_of
from tangram.errors import TangramError
from tangram.models.loading import load_model
from tangram.search.drop_layers import drop_whole_layers, joint_importance
from tangram.tables import CALIBRATION, CORPUS, COSTS, SCORES, read_table, write_table


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


def of_layers(**values: list[float]) -> pd.DataFrame:
    """Return scores of dropped layers, by metric."""
    rows = [
        {"layer": i, "kind": "block", "variant": "no-op+no-op", "metric": m, "value": value, "standard_error": 0.0}
        for m, of_metric in values.items()
        for i, value in enumerate(of_metric)
    ]
    return pd.DataFrame(rows).assign(tokens=8)


def test_importance_is_the_objective_of_the_whole_layer():
    table = of_layers(kl=[0.3, 0.1, 0.2], lm_loss_increase=[0.0, 1.0, 2.0])
    shuffled = table.iloc[::-1]
    assert joint_importance(shuffled, "kl", 3) == (0.3, 0.1, 0.2)
    mixed = joint_importance(shuffled, {"kl": 1.0, "lm_loss_increase": 0.5}, 3)
    assert mixed == pytest.approx((0.3, 0.6, 1.2))


@pytest.mark.parametrize(
    "damaged",
    [lambda table: table[1:], lambda table: pd.concat([table, table[:1]]), lambda table: table.assign(kind="ffn")],
    ids=["a layer is missing", "a layer is there twice", "another kind"],
)
def test_layers_must_be_scored_once_each(damaged):
    with pytest.raises(TangramError, match="not those of layers 0 to 2, each once; delete"):
        joint_importance(damaged(of_layers(kl=[0.3, 0.1, 0.2])), "kl", 3)


def test_importance_overrules_the_sums_of_no_ops():
    problem = library(3, 8).problem({"constraints": [limit("throughput", 2.0)]})
    importance = [0.1 if layer in (2, 5, 6, 7) else 1.0 for layer in range(8)]
    dropped = drop_whole_layers(problem, importance)[2]
    assert 0 < len(dropped) <= 4
    assert set(dropped) <= {2, 5, 6, 7}


def test_the_commands_drop_the_layers_of_smallest_true_kl(tmp_path):
    """The reference: whole models without one layer, in float64."""
    torch.set_num_threads(1)
    layers, tokens = 4, torch.randint(2, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    random_model(tiny_config(num_hidden_layers=layers, vocab_size=60)).save_pretrained(tmp_path / "parent")
    names = ("sequence_id", "source", "input_ids", "documents", "document_starts")
    rows = [dict(zip(names, (i, "test", row.tolist(), ["x"], [0]), strict=True)) for i, row in enumerate(tokens)]
    write_table(rows, CORPUS, tmp_path / "corpus.parquet")
    tables = library(3, layers)
    for name, schema in (("scores", SCORES), ("costs", COSTS), ("calibration", CALIBRATION)):
        write_table(getattr(tables, name), schema, tmp_path / f"{name}.parquet")
    parent, corpus, shards = str(tmp_path / "parent"), str(tmp_path / "corpus.parquet"), ("0-1", "2-3")
    for shard in shards:
        score_layers(slice_of(Scores(position_stride=1)), shard, parent, corpus, str(tmp_path / f"{shard}.parquet"))
    settings = {"target": Target(constraints=[limit("throughput", 1.6)]), "search": Search()}
    drop_layers(
        slice_of({**settings, "scenarios": tables.scenarios}),
        *(str(tmp_path / f"{name}.parquet") for name in ("scores", "costs", "calibration")),
        parent,
        str(tmp_path / "found.json"),
        [str(tmp_path / f"{shard}.parquet") for shard in shards],
    )
    (entry,) = json.loads((tmp_path / "found.json").read_text())["solutions"]

    def logits(gone: int | None) -> torch.Tensor:
        model = load_model(parent, "float32", "cpu").double()
        if gone is not None:
            del model.model.layers[gone]
        with torch.inference_mode():
            return model(tokens, use_cache=False).logits[:, :-1]

    whole = torch.distributions.Categorical(logits=logits(None))
    kl = [
        torch.distributions.kl_divergence(whole, torch.distributions.Categorical(logits=logits(i))).mean().item()
        for i in range(layers)
    ]
    assert entry["importance"] == pytest.approx(kl, rel=1e-3)
    least = sorted(range(layers), key=kl.__getitem__)[: len(entry["layers_dropped"])]
    assert entry["layers_dropped"] == sorted(least) != []
    assert len(read_table(tmp_path / "0-1.parquet", SCORES)) == 2 * 4
