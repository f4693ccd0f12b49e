"""Sizes of every family, read from configs and checked against the modules of real (tiny) models."""

import json

import pytest
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.child.assemble import build_config
from tangram.errors import TangramError
from tangram.models.families import (
    NORMS_BEHIND,
    SUPPORTED,
    Shape,
    attention_types,
    decoder_layers,
    place_of,
    shape_of,
    subblock,
    window_of,
)

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "vocab_size": 64,
}
CONFIGS = [
    LlamaConfig(**SIZES),
    LlamaConfig(**SIZES, head_dim=16, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    MistralConfig(**SIZES, head_dim=16, sliding_window=4),
    Qwen2Config(**SIZES, tie_word_embeddings=True),
    Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=0),
    Qwen3Config(**SIZES, head_dim=16),
    GraniteConfig(**SIZES, tie_word_embeddings=True),
    Olmo2Config(**SIZES, pad_token_id=0),
    SmolLM3Config(**SIZES, pad_token_id=0),
    Gemma2Config(**SIZES, head_dim=16),
    Gemma3TextConfig(**SIZES, head_dim=16),
]
PRE = ("input_layernorm", None), ("post_attention_layernorm", None)
NORMS = {  # before and after attention, before and after the FFN
    "olmo2": ((None, "post_attention_layernorm"), (None, "post_feedforward_layernorm")),
    "gemma2": (
        ("input_layernorm", "post_attention_layernorm"),
        ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
}
NORMS["gemma3_text"] = NORMS["gemma2"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_shape_and_names_are_those_of_the_modules(config, tmp_path):
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    shape = shape_of(tmp_path)
    assert shape == Shape.of(config)
    layers = decoder_layers(model)
    attention, ffn = subblock(layers[0], "attention"), subblock(layers[0], "ffn")
    assert len(layers) == shape.num_layers
    assert attention.q_proj.weight.shape == (shape.heads * shape.head_dim, shape.hidden)
    assert attention.k_proj.weight.shape == (shape.kv_heads * shape.head_dim, shape.hidden)
    assert ffn.down_proj.weight.shape == (shape.hidden, shape.intermediate)
    assert model.lm_head.weight.shape == (shape.vocabulary, shape.hidden)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == shape.tied_head
    places = [place_of(layers[0], kind) for kind in ("attention", "ffn")]
    assert tuple((place.before, place.after) for place in places) == NORMS.get(config.model_type, PRE)
    assert (config.model_type in NORMS_BEHIND) == any(place.after is not None for place in places)
    norms = [name for name, _ in layers[0].named_children() if name.endswith("norm")]
    assert sorted(norms) == sorted(name for place in places for name in place.norms)


def test_a_childs_shape_is_its_parents():
    config = CONFIGS[0]
    child = build_config(config, Architecture((LayerChoice("gqa-1", "width-0.5"), LayerChoice("linear", "no-op"))))
    assert Shape.of(child) == Shape.of(config)
    assert child.per_layer_config[0].num_key_value_heads == 1  # reading the shape left the child as it was


def test_types_of_attention_are_read_per_layer():
    config = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert attention_types(config) == ["full_attention", "sliding_attention"]
    assert window_of(config) == 4
    assert attention_types(MistralConfig(**SIZES, sliding_window=4)) == ["sliding_attention"] * 2
    assert attention_types(LlamaConfig(**SIZES)) == ["full_attention"] * 2


def test_other_types_of_attention_are_refused():
    config = Qwen2Config(**SIZES, layer_types=["full_attention", "chunked_attention"])
    with pytest.raises(TangramError, match=r"^the parent has chunked_attention; only full and sliding [^\n]*$"):
        Shape.of(config)


@pytest.mark.parametrize(
    ("model_type", "experts"),
    [("mixtral", {}), ("qwen3_moe", {}), ("deepseek_v3", {}), ("gpt_oss", {}), ("future", {"num_local_experts": 8})],
)
def test_parents_with_experts_are_refused(tmp_path, model_type, experts):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **experts}))
    with pytest.raises(TangramError, match=rf"'{model_type}' has experts [^\n]* not supported; [^\n]*$"):
        shape_of(tmp_path)


@pytest.mark.parametrize("model_type", ["gpt2", None])
def test_unknown_family_names_the_supported_ones(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(TangramError) as caught:
        shape_of(tmp_path)
    assert all(family in str(caught.value) for family in SUPPORTED)
    assert str(model_type) in str(caught.value)


@pytest.mark.parametrize("text", [None, "{", "[1]", '{"model_type": "llama", "hidden_size": "many"}'])
def test_unreadable_config_is_told_in_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(TangramError, match="is not a readable model config") as caught:
        shape_of(tmp_path)
    assert "\n" not in str(caught.value)
