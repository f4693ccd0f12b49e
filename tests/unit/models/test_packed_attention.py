"""Packed attention and its cache against those of transformers."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_children import FEWER_HEADS, VOCABULARY, child_of
from tiny_models import implementations
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, apply_rotary_pos_emb

from tangram.models.packed import pack
from tangram.models.packed_attention import SLACK, GrowingLayer, Rotation, neighbors

TOKENS = torch.arange(2, 2 + 3 * 11).view(3, 11) * 7 % VOCABULARY


def states(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(2, 3, tokens, 4, generator=torch.Generator().manual_seed(seed))


STEPS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, SLACK + 5)),
    st.tuples(st.just("crop"), st.integers(1, 3)),
    st.tuples(st.just("reorder"), st.permutations([0, 1])),
    st.tuples(st.just("copy"), st.booleans()),
)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(STEPS, min_size=1, max_size=12))
def test_a_growing_layer_holds_what_a_dynamic_one_does(steps):
    """Copies that are left behind keep their tokens, whichever of them goes on."""
    layer, expected, left = GrowingLayer(), DynamicLayer(), []
    for index, (step, value) in enumerate([("append", 3), *steps]):
        if step == "append":
            new = states(value, index), states(value, index + 100)
            for mine, theirs in zip(layer.update(*new), expected.update(*new), strict=True):
                assert torch.equal(mine, theirs)
        elif step == "crop" and expected.get_seq_length() > value:
            layer.crop(-value)
            expected.crop(-value)
        elif step == "reorder":
            layer.reorder_cache(torch.tensor(value))
            expected.reorder_cache(torch.tensor(value))
        elif step == "copy":
            forked = copy.copy(layer)
            if value:
                forked.take_over()
            left.append((layer, expected.keys.clone(), expected.values.clone()))
            layer = forked
        assert layer.get_seq_length() == expected.get_seq_length()
    for other, keys, values in left:
        assert torch.equal(other.keys, keys)
        assert torch.equal(other.values, values)
        other.update(states(1, 7), states(1, 8))
        assert torch.equal(other.keys[:, :, :-1], keys)
    assert torch.equal(layer.keys, expected.keys)


def test_appending_copies_tokens_only_when_the_room_is_used_up():
    layer = GrowingLayer()
    layer.update(states(10, 0), states(10, 1))
    places = {layer.update(states(1, 2), states(1, 3))[0].data_ptr() for _ in range(SLACK)}
    assert len(places) == 1
    assert layer.update(states(1, 2), states(1, 3))[0].data_ptr() not in places


@pytest.mark.parametrize("heads", [1, 3])
def test_a_rotation_of_neighbors_is_the_rotation_of_halves(heads):
    x, angles = torch.randn(2, 5, heads, 8), torch.randn(2, 5, 4)
    cosines, sines = (torch.cat([f(angles)] * 2, dim=-1) for f in (torch.cos, torch.sin))
    expected, _ = apply_rotary_pos_emb(x, x, cosines, sines, unsqueeze_dim=2)
    order = neighbors(heads, 8)
    rotated = Rotation()(x.flatten(2)[..., order].view_as(x), cosines, sines)
    torch.testing.assert_close(rotated.flatten(2), expected.flatten(2)[..., order], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_layers_with_fewer_heads_are_packed_too(parent):
    child = child_of(parent, FEWER_HEADS)
    fast = pack(copy.deepcopy(child))
    packed = [layer.self_attn for layer in fast.model.layers]
    if parent.config.model_type in ("llama", "mistral", "qwen2", "granite"):
        assert [(p.heads, p.key_value_heads) for p in packed] == [(2, 1), (1, 1), (4, 2), (4, 1), (2, 1)]
    caches = DynamicCache(config=child.config), DynamicCache(config=child.config)
    for first, last in ((0, 7), (7, 8), (8, 11)):
        logits = [
            m(TOKENS[:, first:last], past_key_values=cache).logits
            for m, cache in zip((child, fast), caches, strict=True)
        ]
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("last", [0, -1])
@pytest.mark.parametrize("padded", [False, True])
def test_packed_models_decode_with_a_cache_as_before(parent, last, padded):
    """Windows of four tokens are shorter than the text."""
    model = copy.deepcopy(parent)
    model.set_attn_implementation(implementations(model)[last])
    fast, mask = pack(copy.deepcopy(model)), torch.ones_like(TOKENS)
    if padded:
        mask[0, :4] = 0
    caches = DynamicCache(config=model.config), DynamicCache(config=model.config)
    for first, end in ((0, 7), (7, 8), (8, 9), (9, 11)):
        logits = [
            m(TOKENS[:, first:end], attention_mask=mask[:, :end], past_key_values=cache).logits
            for m, cache in zip((model, fast), caches, strict=True)
        ]
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 2}, {}], ids=["beams", "lookup", ""]
)
def test_packed_models_generate_by_every_method_as_before(llama, options):
    tokens = TOKENS[:1] if "prompt_lookup_num_tokens" in options else TOKENS
    arguments = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 8, "do_sample": False, **options}
    expected = llama.generate(tokens, **arguments)
    assert torch.equal(pack(llama).generate(tokens, **arguments), expected)


@torch.no_grad()
def test_a_cache_without_config_grows_in_place_too(llama):
    cache = DynamicCache()
    pack(llama)(TOKENS, past_key_values=cache)
    assert all(type(layer) is GrowingLayer for layer in cache.layers)


@torch.no_grad()
def test_attention_and_norms_of_unknown_classes_stay(llama):
    """A subclass may compute something else, such as other angles or a scaled norm."""

    class Reversed(LlamaAttention):
        def forward(self, hidden_states, **kwargs):
            return -super().forward(hidden_states, **kwargs)[0], None

    class Shifted(LlamaRMSNorm):
        def forward(self, hidden_states):
            return super().forward(hidden_states) + hidden_states

    layer = llama.model.layers[0]
    layer.self_attn.__class__, layer.input_layernorm.__class__ = Reversed, Shifted
    expected = llama(TOKENS).logits
    torch.testing.assert_close(pack(llama)(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
