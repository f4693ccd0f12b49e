"""A parent whose layers take turns in memory: the same numbers, and one layer at a time."""

import pytest
import torch

from tangram.activations import StreamedActivations, capture
from tangram.config import BlockDistillation
from tangram.library.distill import LayerDistillation
from tangram.models.by_layer import load_by_layer, materialize
from tangram.models.families import decoder_layers
from tangram.models.loading import load_model


@pytest.fixture(params=["llama", "mistral", "qwen2", "qwen3"])
def folder(request, tiny_parent):
    return tiny_parent(request.param, tie_word_embeddings=request.param == "llama")


@pytest.fixture
def tokens():
    return torch.randint(0, 320, (4, 12), generator=torch.Generator().manual_seed(0))


def held(model) -> list[int]:
    """Return the layers whose weights are in memory."""
    return [i for i, layer in enumerate(decoder_layers(model)) if next(layer.parameters()).device.type != "meta"]


def test_logits_are_those_of_the_whole_model(folder, tokens):
    model = load_by_layer(folder)
    assert held(model) == []
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits, load_model(folder)(tokens).logits)
    assert held(model) == [2]


def test_captured_and_streamed_states_are_the_same_bytes(folder, tokens, tmp_path):
    capture(load_model(folder), tokens, 2, tmp_path / "whole.npy", "test")
    capture(load_by_layer(folder), tokens, 2, tmp_path / "by-layer.npy", "test")
    assert (tmp_path / "whole.npy").read_bytes() == (tmp_path / "by-layer.npy").read_bytes()
    whole, by_layer = (StreamedActivations(load(folder), tokens, 2) for load in (load_model, load_by_layer))
    assert torch.equal(whole.hidden(3), by_layer.hidden(3))


@pytest.mark.parametrize(
    ("kind", "variant"),
    [("attention", "linear"), ("ffn", "width-0.5"), ("attention", "gqa-1"), ("ffn", "constant")],
)
def test_pieces_are_the_same(folder, tokens, kind, variant):
    pieces = []
    for load in (load_model, load_by_layer):
        model = load(folder).requires_grad_(False)
        states = StreamedActivations(model, tokens, 2)
        inputs, outputs = states.hidden(1), states.hidden(2)
        problem = LayerDistillation(model, 1, inputs, outputs, BlockDistillation(batch_size=2))
        pieces.append(problem.distill(kind, variant, seed=0))
    assert held(model) == [1]
    assert pieces[0].weights.keys() == pieces[1].weights.keys()
    assert all(torch.equal(pieces[0].weights[name], pieces[1].weights[name]) for name in pieces[0].weights)
    assert pieces[0].loss_after == pieces[1].loss_after


def test_one_layer_at_a_time_is_resident(folder):
    model = load_by_layer(folder)
    for index, layer in enumerate(decoder_layers(model)):
        assert materialize(layer) is layer
        assert held(model) == [index]
    whole = load_model(folder)
    assert materialize(decoder_layers(whole)[0]) is decoder_layers(whole)[0]
