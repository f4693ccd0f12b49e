"""True scores of many children through shared layers: equal to those of every assembled child."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_children import LAYERS, MIXED, NO_ATTENTION, PARENT_ONLY, QUANTIZED, UNIFORM, VOCABULARY, child_of, pieces

from tangram.activations import CachedActivations, StreamedActivations, capture
from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.errors import TangramError
from tangram.metrics import compare
from tangram.selection import assembled
from tangram.selection.assembled import AssembledScores

LATE = Architecture((*PARENT_ONLY.layers[:3], LayerChoice("no-op", "width-0.5"), LayerChoice("gqa-1", "no-op")))
LATER = Architecture((*LATE.layers[:4], LayerChoice("linear", "parent")))
CHILDREN = [MIXED, LATE, NO_ATTENTION, PARENT_ONLY, LATER, UNIFORM, replace(LATE, head="parent@int8"), QUANTIZED]
TOKENS = torch.randint(2, VOCABULARY, (5, 12), generator=torch.Generator().manual_seed(3))


def scores(parent, **options) -> AssembledScores:
    settings = {"batch_size": 2} | options
    return AssembledScores(parent, StreamedActivations(parent, TOKENS, 2), TOKENS, pieces(parent), **settings)


def expected(parent, child, metric: str, positions: torch.Tensor) -> np.ndarray:
    """Return the scores per sequence of an assembled child, run as a whole."""
    with torch.no_grad():
        teacher, logits = (m(TOKENS).logits[:, positions].flatten(0, 1) for m in (parent, child_of(parent, child)))
    metrics = compare(logits, teacher, TOKENS[:, positions + 1].flatten())
    values = metrics["kl"] if metric == "kl" else metrics["loss"] - metrics["parent_loss"]
    return values.unflatten(0, (len(TOKENS), -1)).mean(1).numpy()


@pytest.mark.parametrize(("metric", "stride"), [("kl", 1), ("kl", 4), ("lm_loss_increase", 1)])
def test_scores_are_those_of_the_assembled_children(parent, metric, stride):
    positions = torch.arange(10, -1, -stride).flip(0)
    found = scores(parent, objective=metric, position_stride=stride).look(CHILDREN)
    for child, row in zip(CHILDREN, found, strict=True):
        assert row == pytest.approx(expected(parent, child, metric, positions), rel=1e-3, abs=1e-5)
    assert found[3] == pytest.approx(np.zeros(5), abs=1e-6)


def test_a_mix_is_the_weighted_sum_of_its_metrics(llama):
    parts = {
        name: scores(llama, objective=name).look(CHILDREN) for name in ("kl", "lm_loss_increase", "cosine_distance")
    }
    weights = {"kl": 1.0, "lm_loss_increase": 0.5, "cosine_distance": 2.0}
    mixed = scores(llama, objective=weights).look(CHILDREN)
    assert mixed == pytest.approx(sum(weight * parts[name] for name, weight in weights.items()), abs=1e-6)
    with torch.no_grad():
        models = [llama, child_of(llama, MIXED)]
        last = [m(TOKENS, output_hidden_states=True).hidden_states[-1][:, :-1].numpy() for m in models]
    cosine = (last[0] * last[1]).sum(-1) / np.linalg.norm(last[0], axis=-1) / np.linalg.norm(last[1], axis=-1)
    assert parts["cosine_distance"][0] == pytest.approx(1 - cosine.mean(1), abs=1e-5)


def test_any_sequences_and_any_order_give_the_same(llama, monkeypatch):
    whole = scores(llama).look(CHILDREN)
    assert scores(llama).look(CHILDREN[::-1], [4, 0, 3])[::-1] == pytest.approx(whole[:, [4, 0, 3]], abs=1e-6)
    monkeypatch.setattr(assembled, "CHILDREN_PER_PASS", 2)
    assert scores(llama).look(CHILDREN) == pytest.approx(whole, abs=1e-6)


def test_cached_activations_give_the_same(llama, tmp_path):
    capture(llama, TOKENS, 2, tmp_path / "states.npy", "states")
    cached = CachedActivations(tmp_path / "states.npy", llama, TOKENS)
    found = AssembledScores(llama, cached, TOKENS, pieces(llama), 2).look(CHILDREN)
    assert found == pytest.approx(scores(llama).look(CHILDREN), abs=1e-6)


def test_shared_layers_and_the_parents_first_run_once(llama):
    found = scores(llama)
    found.look([LATE, LATER, PARENT_ONLY, replace(LATE, head="parent@int8")], [1])
    assert found.layers_run == 3  # the fourth layer once, and two fifth ones
    assert found.layers_asked == 3 * LAYERS


def test_pieces_that_are_not_finite_are_an_error(llama):
    source = pieces(llama)

    def broken(kind, variant, layer):
        return {name: tensor * float("nan") for name, tensor in source(kind, variant, layer).items()}

    damaged = AssembledScores(llama, StreamedActivations(llama, TOKENS, 2), TOKENS, broken, 2)
    with pytest.raises(TangramError, match="candidate 1: its outputs are not finite"):
        damaged.look([PARENT_ONLY, LATE])
