"""Attention to a window against stock attention with a dense mask, in every way in which a model is called."""

import copy

import pytest
import torch
from tiny_children import CONFIGS, VOCABULARY, child_of
from tiny_models import random_model
from torch import nn

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.errors import TangramError
from tangram.models import window
from tangram.models.packed import pack
from tangram.models.window import window_mask

WINDOWS = (2, None, 5, 1, 3)  # by layer
SINKS = 4
WINDOWED = Architecture(tuple(LayerChoice(f"window-{size}" if size else "parent") for size in WINDOWS))
LENGTH = 19
TOKENS = torch.arange(2, 2 + 2 * LENGTH).view(2, LENGTH) * 7 % VOCABULARY


@pytest.fixture(params=["llama", "llama-biases", "qwen2", "qwen3", "granite", "olmo2"])
def parent(request):
    return random_model(CONFIGS[request.param])


@pytest.fixture(params=[1, 4, 64], ids=lambda chunk: f"chunk-{chunk}")
def chunk(request, monkeypatch):
    """The tokens whose attention is computed at a time."""
    monkeypatch.setattr(window, "SMALLEST_CHUNK", request.param)


def seen(query: int, key: int, size: int) -> bool:
    return key <= query and (key < SINKS or query - key < size)


@torch.no_grad()
def dense(parent, tokens):
    """Return the logits of the parent, called with a mask of all pairs of tokens in the layers with a window."""
    model, length = copy.deepcopy(parent), tokens.shape[1]
    for layer, size in zip(model.model.layers, WINDOWS, strict=True):
        if size is not None:
            mask = torch.tensor([[seen(i, j, size) for j in range(length)] for i in range(length)])[None, None]
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, mask=mask: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
            )
    return model(tokens, use_cache=False).logits


@torch.no_grad()
@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_window_is_a_dense_mask(parent, implementation):
    child, expected = child_of(parent, WINDOWED), dense(parent, TOKENS)
    child.set_attn_implementation(implementation)
    for use_cache in (False, True):
        torch.testing.assert_close(child(TOKENS, use_cache=use_cache).logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(parent(TOKENS).logits, expected, atol=1e-2)


@torch.no_grad()
@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("steps", [[9, *[1] * 10], [1] * LENGTH, [6, 7, 6], [3, 1, 8, 1, 6]])
def test_decoding_with_a_cache_equals_one_pass(parent, packed, steps):
    child, expected, cache, logits = child_of(parent, WINDOWED), dense(parent, TOKENS), None, []
    child = pack(child) if packed else child
    for part in TOKENS.split(steps, dim=1):
        outputs = child(part, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        logits.append(outputs.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_is_neither_seen_nor_a_sink(parent, implementation):
    child = child_of(parent, WINDOWED)
    child.set_attn_implementation(implementation)
    padded, mask = nn.functional.pad(TOKENS, (3, 0)), torch.ones(2, LENGTH + 3, dtype=torch.int64)
    mask[:, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    logits = child(padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    torch.testing.assert_close(logits, dense(parent, TOKENS), rtol=1e-4, atol=1e-5)


WAYS = [
    {"cache_implementation": "static", "prefill_chunk_size": 4},
    {"cache_implementation": "static"},
    {"prefill_chunk_size": 4},
    {"prompt_lookup_num_tokens": 3},
    {"num_beams": 3},
]


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way))
def test_every_way_to_generate_equals_recomputing_everything(parent, way):
    child = child_of(parent, WINDOWED)
    settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(TOKENS[:1])}
    plain = {**settings, "use_cache": False} | ({"num_beams": way["num_beams"]} if "num_beams" in way else {})
    assert torch.equal(child.generate(TOKENS[:1], **settings, **way), child.generate(TOKENS[:1], **plain))


def test_gradients_are_those_of_the_dense_mask(parent):
    child = child_of(parent, WINDOWED)
    child.model.layers[0].self_attn.q_proj.requires_grad_(True)
    child(TOKENS, use_cache=False).logits.square().mean().backward()
    weight = child.model.layers[0].self_attn.q_proj.weight
    step, loss = 1e-3 * weight.grad / weight.grad.norm(), []
    for sign in (1, -1):
        changed = copy.deepcopy(parent)
        with torch.no_grad():
            changed.model.layers[0].self_attn.q_proj.weight.add_(sign * step)
        loss.append(dense(changed, TOKENS).double().square().mean())
    torch.testing.assert_close((loss[0] - loss[1]) / 2e-3, weight.grad.norm().double(), rtol=2e-2, atol=0)


def test_tokens_of_several_branches_count_their_own():
    """Keys that a token does not see, such as those of another answer to a question, are no part of its window."""
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    mask[7:, 5:7] = False  # a second answer, which begins behind the question's five tokens
    found = window_mask(mask[None, None], 2)[0, 0]
    assert found[8].nonzero().flatten().tolist() == [0, 1, 2, 3, 7, 8]
    assert found[7].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 7]
    added = torch.zeros(9, 9).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]
    assert torch.equal(window_mask(added, 2)[0, 0] == 0, found)


def test_a_window_in_a_window_is_refused():
    with pytest.raises(TangramError, match="has a window of its own"):
        child_of(random_model(CONFIGS["mistral-sliding"]), WINDOWED)
