"""The gate: a parent that any way of the pipeline would compute differently is refused, by the attribute at fault."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3Config

from tangram.config import Parent
from tangram.errors import TangramError
from tangram.models import families
from tangram.models.by_layer import load_by_layer
from tangram.models.families import window_of
from tangram.models.loading import load_model
from tangram.parent import fidelity
from tangram.parent.fetch import fetch

SIZES = {"num_layers": 3, "num_attention_heads": 4, "num_kv_heads": 2}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
    "logits_scaling": 4,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
}
TWO_BASES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
}
PARENTS = [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"hidden_act": "gelu"}),
    ("llama", {"rope_parameters": {"rope_theta": 5e5, **LLAMA3, "original_max_position_embeddings": 16}}),
    ("llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}}),
    ("llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}}),
    ("mistral", {"sliding_window": 8}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 9}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
    ("qwen3", {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ("granite", MULTIPLIERS),
    ("granite", {**MULTIPLIERS, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("olmo2", {}),
    ("olmo2", {"attention_bias": True, "tie_word_embeddings": True}),
    ("smollm3", {"no_rope_layers": [1, 0, 1]}),
    ("smollm3", {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 8}),
    ("phi3", {}),
    ("phi3", {"sliding_window": 8, "tie_word_embeddings": True}),
    ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16, "head_dim": 8}),
    ("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 0.5}),
    ("gemma2", {"sliding_window": 8, "final_logit_softcapping": 0.5, "tie_word_embeddings": True}),
    ("gemma3_text", {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8}),
    ("gemma3_text", {"sliding_window": 8, "rope_parameters": TWO_BASES, "tie_word_embeddings": True}),
]


def fetch_local(source, output, dtype="float32"):
    fetch(Parent.model_validate({"source": {"type": "local", "path": str(source)}, **SIZES}), output, dtype, {})
    return output


@pytest.fixture
def differences(monkeypatch) -> dict[str, float]:
    """By way, how far it was from the reference; filled while a parent is fetched."""
    found, check = {}, fidelity._check

    def recorded(name, logits, reference, at_fault):
        found[name] = fidelity.difference(logits, reference)
        check(name, logits, reference, at_fault)

    monkeypatch.setattr(fidelity, "_check", recorded)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "overrides"), PARENTS)
def test_a_supported_parent_is_the_same_in_every_way(tiny_parent, tmp_path, differences, family, overrides, dtype):
    fetch_local(tiny_parent(family, **overrides), tmp_path / "parent", dtype)
    assert len(differences) == len(fidelity.OF_ONE_MODEL) + 2
    assert max(differences.values()) < 1e-5, differences


# Each says something of its model that some way passes over: of families that the pipeline does not know, let through,
# and of Granite without the code for its multipliers.
OTHERS = [
    ("granite", {"logits_scaling": 8.0}, "logits_scaling"),
    ("granite", {"embedding_multiplier": 12.0}, "embedding_multiplier"),
    ("granite", {"logits_scaling": 8.0, "embedding_multiplier": 12.0}, "one of embedding_multiplier, logits_scaling"),
    ("cohere", {"logit_scale": 0.25}, "logit_scale"),
]


@pytest.mark.parametrize(("family", "overrides", "named"), OTHERS)
def test_an_attribute_that_a_way_passes_over_is_named(tiny_parent, tmp_path, monkeypatch, family, overrides, named):
    monkeypatch.setattr(families, "SUPPORTED", (*families.SUPPORTED, family))
    monkeypatch.setattr("tangram.activations.embed", lambda model, tokens: model.model.embed_tokens(tokens))
    monkeypatch.setattr(fidelity, "logits_of", lambda model, normed: model.lm_head(normed))
    with pytest.raises(TangramError, match=rf"layer by layer .*: .*{named}") as caught:
        fetch_local(tiny_parent(family, **overrides), tmp_path / "results" / "parent")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize(
    ("way", "broken"),
    [
        ("layer by layer", "tangram.models.forward.attention_types"),
        ("answering a question's choices", "tangram.evaluation.question_tree.attention_types"),
    ],
)
def test_a_window_that_a_way_passes_over_is_named(tiny_parent, tmp_path, monkeypatch, way, broken):
    monkeypatch.setattr(broken, lambda config: [families.FULL] * config.num_hidden_layers)
    with pytest.raises(TangramError, match=rf"{way} .*config.json's sliding_window is not carried over"):
        fetch_local(tiny_parent("mistral", sliding_window=8), tmp_path / "parent")


def test_a_window_that_a_way_applies_by_itself_is_named(tiny_parent, tmp_path, monkeypatch):
    monkeypatch.setattr("tangram.models.forward.attention_types", lambda config: [families.SLIDING] * 3)
    overrides = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
    with pytest.raises(TangramError, match=r"run layer by layer .*(use_)?sliding_window"):
        fetch_local(tiny_parent("qwen2", **overrides), tmp_path / "parent")


def test_weights_that_change_on_their_way_are_refused(tiny_parent, tmp_path, monkeypatch):
    original = fidelity.load_model

    def other(folder, *arguments):
        model = original(folder, *arguments)
        model.model.norm.weight.data *= torch.linspace(0.5, 2, 32)
        return model

    monkeypatch.setattr(fidelity, "load_model", other)
    with pytest.raises(TangramError, match="read back from the run's folder is another model"):
        fetch_local(tiny_parent("llama"), tmp_path / "parent")


def test_sequences_pass_the_window_within_budget_and_context():
    small = 1_000_000
    assert fidelity.token_count(MistralConfig(sliding_window=300), small) == 364
    assert fidelity.token_count(LlamaConfig(), small) == 256
    assert fidelity.token_count(LlamaConfig(max_position_embeddings=64), small) == 64
    assert fidelity.token_count(MistralConfig(sliding_window=4096), 7_000_000_000) == 32
    tokens = fidelity.comparison_tokens(LlamaConfig(), small)
    assert torch.equal(tokens[0, :128], tokens[1, :128])
    assert not torch.equal(tokens[0, 128:], tokens[1, 128:])


def test_the_layers_type_decides_on_the_window_not_its_width():
    assert window_of(LlamaConfig()) is None
    assert window_of(MistralConfig(sliding_window=8)) == 8
    assert window_of(MistralConfig(sliding_window=None)) is None
    sliding = {"use_sliding_window": True, "sliding_window": 8, "num_hidden_layers": 3}
    assert window_of(Qwen3Config(**sliding, max_window_layers=3)) is None
    assert window_of(Qwen3Config(**sliding, max_window_layers=0)) == 8


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_an_untied_head_under_a_tied_config_is_kept(tiny_parent, tmp_path, family):
    from tangram.blocks.architecture import Architecture, LayerChoice
    from tangram.child.assemble import assemble_state, build_config, load_parent, save_child

    source = tmp_path / "source"
    AutoModelForCausalLM.from_pretrained(tiny_parent(family, tie_word_embeddings=False)).save_pretrained(source)
    for path in tiny_parent(family).glob("tokenizer*"):
        (source / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    stock = AutoModelForCausalLM.from_pretrained(source)
    tokens = torch.arange(3, 60)[None]
    with torch.no_grad():
        expected = stock(tokens).logits
    folder = fetch_local(source, tmp_path / "parent")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    config, state = load_parent(folder)
    parent_only = Architecture((LayerChoice(),) * 3)
    save_child(
        assemble_state(state, parent_only, dict), build_config(config, parent_only), folder, tmp_path / "child", {}
    )
    for path in (folder, tmp_path / "child"):
        for load in (load_model, load_by_layer, AutoModelForCausalLM.from_pretrained):
            with torch.no_grad():
                assert torch.equal(load(path)(tokens).logits, expected)


def test_one_matrix_that_is_stored_twice_stays_one(tiny_parent, tmp_path):
    from safetensors.torch import load_file, save_file

    source = fetch_local(tiny_parent("llama", tie_word_embeddings=True), tmp_path / "source")
    state = load_file(source / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, source / "model.safetensors", {"format": "pt"})
    (source / "provenance.json").unlink()
    folder = fetch_local(source, tmp_path / "parent")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_child_with_layers_of_its_own_is_no_parent(tiny_parent, tmp_path):
    from tangram.blocks.architecture import Architecture, LayerChoice
    from tangram.child.assemble import assemble_state, build_config, load_parent, save_child

    folder = tiny_parent("llama")
    config, state = load_parent(folder)
    mixed = Architecture((LayerChoice(), LayerChoice("no-op"), LayerChoice()))
    save_child(assemble_state(state, mixed, lambda *_: {}), build_config(config, mixed), folder, tmp_path / "child", {})
    with pytest.raises(TangramError, match=re.escape(f"{tmp_path}/child is a heterogeneous child")):
        fetch_local(tmp_path / "child", tmp_path / "parent")
