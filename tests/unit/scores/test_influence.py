"""Block influence against the hidden states that transformers returns."""

import itertools

import pytest
import torch

from tangram.activations import StreamedActivations
from tangram.models.loading import load_model
from tangram.scores.influence import block_influence


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_influence_is_one_less_the_cosine(tiny_parent, family):
    model = load_model(tiny_parent(family), "float32", "cpu").requires_grad_(False)
    tokens = torch.randint(0, model.config.vocab_size, (5, 13), generator=torch.Generator().manual_seed(0))
    layers = model.config.num_hidden_layers
    kept = []  # the output of every layer before the final norm
    hooks = [layer.register_forward_hook(lambda _, __, output: kept.append(output)) for layer in model.model.layers]
    with torch.no_grad():
        kept.append(model.model.embed_tokens(tokens))
        model(tokens)
    for hook in hooks:
        hook.remove()
    states = [state[0] if isinstance(state, tuple) else state for state in kept]
    expected = [
        1 - torch.nn.functional.cosine_similarity(a, b, dim=-1).mean().item() for a, b in itertools.pairwise(states)
    ]
    found = block_influence(StreamedActivations(model, tokens, 2), layers)
    assert found == pytest.approx(expected, abs=1e-5)
    assert len(found) == layers
    assert all(value > 0 for value in found)
