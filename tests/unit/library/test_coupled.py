"""Coupled distillation on a tiny parent, against pieces that were trained separately and then composed."""

import pytest
import torch
from replaced import replaced

from tangram.activations import StreamedActivations
from tangram.blocks.architecture import LayerChoice
from tangram.config import BlockDistillation
from tangram.library.coupled import distill_pair
from tangram.library.distill import LayerDistillation
from tangram.models.families import decoder_layers
from tangram.models.loading import load_model

PREFIXES = {"attention": "self_attn.", "ffn": "mlp."}


@pytest.fixture(params=["qwen3", "gemma2"])
def model(request, tiny_parent):
    return load_model(tiny_parent(request.param), "float32", "cpu").requires_grad_(False)


def local_problem(model, **settings):
    tokens = torch.randint(0, model.config.vocab_size, (64, 32), generator=torch.Generator().manual_seed(0))
    states = StreamedActivations(model, tokens, 8)
    settings = {"epochs": 6, "learning_rate": 3e-3, "batch_size": 4, "holdout_fraction": 0.25, **settings}
    return LayerDistillation(model, 1, states.hidden(1), states.hidden(2), BlockDistillation(**settings))


def gqa(model):
    return f"gqa-{model.config.num_key_value_heads // 2}"


def pieces_of(problem, choice):
    """Return the separately trained pieces of both variants, by kind."""
    variants = {"attention": choice.attention, "ffn": choice.ffn}
    return {kind: problem.distill(kind, variant, 0).weights for kind, variant in variants.items()}


def composed(model, choice, pieces):
    """Return the layer with both pieces, put together by hand."""
    layer = replaced(model, 1, "attention", choice.attention, pieces["attention"])
    layer.mlp = replaced(model, 1, "ffn", choice.ffn, pieces["ffn"]).mlp
    return layer


def split(piece):
    """Return a pair's tensors by kind and name in the subblock."""
    return {
        kind: {name.removeprefix(prefix): t for name, t in piece.weights.items() if name.startswith(prefix)}
        for kind, prefix in PREFIXES.items()
    }


def loss_of(problem, layer):
    """Return the paper's loss of a layer on the held-out sequences."""
    inputs, outputs = problem.inputs[problem.training :], problem.outputs[problem.training :]
    error = torch.nn.functional.mse_loss(layer(inputs, **problem.context), outputs)
    return (error / (problem.outputs - problem.inputs).square().mean()).item()


def test_a_pair_is_better_than_its_separate_pieces(model):
    problem, choice = local_problem(model), LayerChoice(gqa(model), "width-0.5", coupled=True)
    pieces = pieces_of(problem, choice)
    pair = distill_pair(problem, choice, 0, pieces)
    separate = loss_of(problem, composed(model, choice, pieces))
    assert pair.loss_before == pytest.approx(separate, rel=1e-4)
    assert pair.kept == "trained"
    together = loss_of(problem, composed(model, choice, split(pair)))
    assert pair.loss_after == pytest.approx(together, rel=1e-4)
    assert together < 0.95 * separate


def test_an_ffn_is_trained_beside_no_attention(model):
    problem, choice = local_problem(model), LayerChoice("no-op", "width-0.5", coupled=True)
    pieces = pieces_of(problem, choice)
    pair = distill_pair(problem, choice, 0, pieces)
    assert {name.split(".")[0] for name in pair.weights} == {"mlp"}
    assert loss_of(problem, composed(model, choice, split(pair))) < 0.9 * pair.loss_before


def test_closed_form_maps_are_trained_in_a_pair(model):
    problem, choice = local_problem(model), LayerChoice("linear", "linear", coupled=True)
    pair = distill_pair(problem, choice, 0, pieces_of(problem, choice))
    assert pair.loss_after < pair.loss_before


def test_without_pieces_a_pair_starts_where_they_do(model):
    choice = LayerChoice(gqa(model), "width-0.5", coupled=True)
    pieces = pieces_of(local_problem(model, epochs=0), choice)
    pair = distill_pair(local_problem(model, epochs=0), choice, 0)
    for kind, tensors in split(pair).items():
        assert tensors.keys() == pieces[kind].keys()
        assert all(torch.equal(tensor, pieces[kind][name]) for name, tensor in tensors.items())
    assert (pair.kept, pair.loss_after, pair.curve) == ("initial", None, [])


def test_worse_training_keeps_the_separate_pieces(model):
    problem, choice = local_problem(model, learning_rate=3.0, epochs=2), LayerChoice(gqa(model), "width-0.5")
    pieces = pieces_of(problem, choice)
    pair = distill_pair(problem, choice, 0, pieces)
    assert pair.kept == "initial"
    assert pair.loss_after > pair.loss_before
    assert all(torch.equal(t, pieces[kind][name]) for kind, ts in split(pair).items() for name, t in ts.items())


def test_pairs_of_equal_seeds_are_equal_and_spare_the_parent(model):
    before = {name: tensor.clone() for name, tensor in decoder_layers(model)[1].state_dict().items()}
    choice = LayerChoice(gqa(model), "width-0.5", coupled=True)
    pairs = [distill_pair(local_problem(model, epochs=2), choice, 3) for _ in range(2)]
    assert all(torch.equal(tensor, pairs[1].weights[name]) for name, tensor in pairs[0].weights.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder_layers(model)[1].state_dict().items())
