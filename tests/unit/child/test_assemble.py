"""Assembly: what a child's tensors, config and folder are, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_children import HIDDEN, IN_BF16, MIXED, PARENT_ONLY, QUANTIZED, child_of, pieces
from transformers import AutoModelForCausalLM

from tangram.blocks.architecture import Architecture, LayerChoice, pieces_of
from tangram.child.assemble import assemble_state, build_child, build_config, cast_state, dtype_of, save_child
from tangram.errors import TangramError
from tangram.files import write_tensors
from tangram.library.checksums import piece_checksums
from tangram.library.pieces import read_library, tensor_name
from tangram.models.families import read_config
from tangram.models.forward import layer_contexts
from tangram.selection.candidates import child_layer


def test_state_keeps_the_parents_tensors_and_takes_the_pieces(llama):
    parent_state, library = llama.state_dict(), pieces(llama)
    state = assemble_state(parent_state, MIXED, library)
    assert state["model.layers.1.self_attn.k_proj.weight"].shape == (16, HIDDEN)
    assert torch.equal(state["model.layers.2.mlp.linear_mlp.bias"], library("ffn", "linear", 2)["linear_mlp.bias"])
    gone = {name.split(".", 2)[2] for name in parent_state.keys() - state.keys() if name.startswith("model.layers.")}
    assert {name for name in gone if name.startswith(("0.", "3."))} == {
        "0.input_layernorm.weight",
        *(f"0.self_attn.{p}_proj.{t}" for p in "qkvo" for t in ("weight", "bias")),
        "3.post_attention_layernorm.weight",
        *(f"3.mlp.{p}_proj.{t}" for p in ("gate", "up", "down") for t in ("weight", "bias")),
    }
    assert not any(name.startswith("4.") for name in gone)
    assert all(
        state[n] is t for n, t in parent_state.items() if not n.startswith(tuple(f"model.layers.{i}" for i in range(4)))
    )


def test_coupled_layers_take_both_subblocks_of_the_pair(llama, tmp_path):
    random = torch.Generator().manual_seed(3)
    library, stored = pieces(llama), {}
    for layer in range(2):
        for kind, variant in (("attention", "gqa-1"), ("ffn", "width-0.5")):
            for name, tensor in library(kind, variant, layer).items():
                stored[tensor_name(layer, kind, name)] = torch.randn(tensor.shape, generator=random)
            alone = {tensor_name(layer, kind, n): t.contiguous() for n, t in library(kind, variant, layer).items()}
            write_tensors(tmp_path / kind / variant / f"0-{layer}.safetensors", alone, {})
    write_tensors(tmp_path / "block" / "gqa-1+width-0.5" / "0-1.safetensors", stored, {})
    coupled = LayerChoice("gqa-1", "width-0.5", coupled=True)
    architecture = Architecture((coupled, coupled, *PARENT_ONLY.layers[2:]))
    read = read_library(tmp_path, ("0-1", "2-4"))
    state = assemble_state(llama.state_dict(), architecture, read)
    assert len(stored) == 2 * sum(len(library(*piece, 0)) for piece in (("attention", "gqa-1"), ("ffn", "width-0.5")))
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    (checksums,) = piece_checksums([architecture], read)
    assert checksums.keys() == {f"00{i} {kind} gqa-1+width-0.5" for i in range(2) for kind in ("attention", "ffn")}
    layer, hidden = child_layer(llama, 1, coupled, read), torch.randn(1, 5, HIDDEN, generator=random)
    child = build_child(build_config(llama.config, architecture), state)
    context = layer_contexts(llama, hidden)[1]
    with torch.inference_mode():
        expected = child.model.layers[1](hidden, **context)
        torch.testing.assert_close(layer(hidden, **context), expected, rtol=1e-5, atol=1e-5)


def test_a_heads_piece_replaces_the_parents_head(parent):
    library = pieces(parent)
    state = assemble_state(parent.state_dict(), replace(MIXED, head="parent@bf16"), library)
    plain = assemble_state(parent.state_dict(), MIXED, library)
    assert torch.equal(state.pop("lm_head.weight"), library("head", "parent@bf16", 0)["weight"])
    assert plain.pop("lm_head.weight") is not None
    assert state.keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in state.items())


@torch.no_grad()
def test_a_child_with_a_head_of_its_own_keeps_its_embedding(parent):
    child = child_of(parent, replace(PARENT_ONLY, head="parent@bf16"))
    tokens = torch.arange(2, 14).view(2, 6)
    logits, expected = child(tokens).logits.float(), -parent(tokens).logits
    assert (logits - expected).norm() < 0.02 * expected.norm()
    assert torch.equal(child.model.embed_tokens.weight, parent.model.embed_tokens.weight)
    assert not child.config.tie_word_embeddings


@torch.no_grad()
def test_a_child_in_int8_keeps_its_types_and_nearly_its_logits(parent):
    plain = [replace(c, **{k: v.removesuffix("@int8") for k, v in pieces_of(c)}) for c in QUANTIZED.layers]
    child, reference = child_of(parent, QUANTIZED), child_of(parent, Architecture(tuple(plain)))
    types = {name: tensor.dtype for name, tensor in child.state_dict().items()}
    assert types["lm_head.weight"] == types["model.layers.0.mlp.up_proj.weight"] == torch.int8
    assert types["model.embed_tokens.weight"] == types["model.layers.1.self_attn.q_proj.weight"] == torch.float32
    tokens = torch.arange(2, 14).view(2, 6)
    logits, expected = child(tokens).logits, reference(tokens).logits
    assert 0 < (logits - expected).norm() < 0.1 * expected.norm()


def test_pieces_with_a_precision_keep_their_types():
    architecture = Architecture((LayerChoice("parent@int8", "width-0.5"),), "parent@bf16")
    stored = {
        "model.embed_tokens.weight": torch.float32,
        "model.layers.0.self_attn.q_proj.weight": torch.int8,
        "model.layers.0.self_attn.q_proj.scale": torch.float32,
        "model.layers.0.self_attn.q_proj.bias": torch.float32,
        "model.layers.0.mlp.up_proj.weight": torch.float32,
        "model.layers.0.input_layernorm.weight": torch.float32,
        "lm_head.weight": torch.bfloat16,
    }
    state = {name: torch.zeros(2, dtype=dtype) for name, dtype in stored.items()}
    types = {name: tensor.dtype for name, tensor in cast_state(state, architecture, torch.float16).items()}
    cast = {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"}
    assert types == {**stored, **dict.fromkeys(cast, torch.float16)}
    assert dtype_of(cast_state(state, architecture, torch.float16)) == torch.float16


def test_config_says_what_differs_and_survives_json(parent, tmp_path):
    config = build_config(parent.config, MIXED)
    config.save_pretrained(tmp_path)
    again = read_config(tmp_path)
    layers = again.per_layer_config
    assert [layer.num_key_value_heads for layer in layers] == [2, 1, 2, 2, 2]
    assert [layer.intermediate_size for layer in layers] == [48, 24, 48, 48, 48]
    assert [layer.linear for layer in layers] == [[], [], ["attention", "mlp"], [], []]
    assert [layer.skip for layer in layers] == [["attention"], [], [], ["mlp"], []]
    assert again.auto_map["AutoModelForCausalLM"].startswith("modeling_tangram.Tangram")
    assert again.auto_map["AutoConfig"] == f"configuration_tangram.{type(again).__name__}"
    assert again.model_type == f"tangram_{parent.config.model_type}"
    assert isinstance(again, type(parent.config))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_built_child_shares_no_memory_with_the_parent(llama):
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    child = child_of(llama, Architecture((LayerChoice(),) * 5))
    with torch.no_grad():
        for parameter in child.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())


def test_architecture_of_another_depth_is_refused(llama):
    with pytest.raises(TangramError, match="has 4 layers, but the parent has 5"):
        build_config(llama.config, Architecture(MIXED.layers[:4]))


def test_nan_in_a_piece_is_refused(llama):
    def library(kind, variant, layer):
        piece = dict(pieces(llama)(kind, variant, layer))
        if (kind, layer) == ("ffn", 2):
            piece["linear_mlp.bias"] = torch.full((HIDDEN,), torch.nan)
        return piece

    with pytest.raises(TangramError, match=r"ffn linear of layer 2 holds NaN .* 'linear_mlp.bias'"):
        assemble_state(llama.state_dict(), MIXED, library)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", torch.zeros(25, HIDDEN), r"is \(25, 32\), .* asks for \(24, 32\)"),
        ("model.layers.2.self_attn.linear_attn.bias", None, r"is nothing, .* asks for \(32,\)"),
        ("model.layers.0.self_attn.q_proj.bias", torch.zeros(64), r"is \(64,\), .* asks for nothing"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_writing(llama, tmp_path, name, tensor, message):
    config = build_config(llama.config, MIXED)
    state = assemble_state(llama.state_dict(), MIXED, pieces(llama))
    state.pop(name, None)
    if tensor is not None:
        state[name] = tensor
    for build in (
        lambda: build_child(config, state),
        lambda: save_child(state, config, tmp_path, tmp_path / "child", {}),
    ):
        with pytest.raises(TangramError, match=message) as caught:
            build()
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_saved_folder_is_complete_and_replaced_as_a_whole(llama, tmp_path):
    parent = tmp_path / "parent"
    parent.mkdir()
    kept = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "merges.txt"]
    for name in [*kept, "generation_config.json", "README.md", "pytorch_model.bin", "config.json", "provenance.json"]:
        (parent / name).write_text(f"parent's {name}")
    child = child_of(llama, MIXED)
    provenance = {f"tangram.{key}": 'a "quoted" value, ünïcode' for key in "abcdefgh"}

    def saved() -> dict[str, bytes]:
        save_child(child, child.config, parent, tmp_path / "child", provenance, {"architecture": ["x"]})
        return {path.name: path.read_bytes() for path in (tmp_path / "child").iterdir()}

    files = saved()
    assert len({path.stat().st_mode for path in (tmp_path / "child").iterdir()}) == 1  # no file for its owner only
    (tmp_path / "child" / "stale").touch()
    assert saved() == files
    own = {"config.json", "model.safetensors", "provenance.json"}
    own |= {"configuration_tangram.py", "modeling_tangram.py", "operators.py", "packed.py", "packed_attention.py"}
    own |= {"quantized.py", "layouts.py", "window.py"}
    assert files.keys() == {*kept, "generation_config.json"} | own
    assert files["tokenizer.json"] == b"parent's tokenizer.json"
    made = json.loads(files["provenance.json"])
    assert made["architecture"] == ["x"]
    assert made["tangram.a"] == provenance["tangram.a"]
    assert str(tmp_path).encode() not in b"".join(files.values())
    assert "lm_head.weight" not in load_file(tmp_path / "child" / "model.safetensors")  # it is tied
    assert json.loads(files["config.json"])["dtype"] == "float32"


def test_config_takes_the_dtype_of_the_weights(llama, tmp_path):
    child = child_of(llama, MIXED).bfloat16()
    save_child(child, child.config, tmp_path, tmp_path / "child", {})
    assert read_config(tmp_path / "child").dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", [QUANTIZED, IN_BF16], ids=["int8", "bf16"])
def test_a_child_trained_in_float32_is_saved_in_its_precisions(parent, tmp_path, architecture):
    """Training converts floating weights to float32; the integers stay."""
    child = child_of(parent, architecture)
    save_child(child, child.config, tmp_path, tmp_path / "assembled", {})
    save_child(child.float(), child.config, tmp_path, tmp_path / "trained", {})
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("assembled", "trained"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name], tensor), name
    matrices = torch.int8 if architecture is QUANTIZED else torch.bfloat16
    assert before["lm_head.weight"].dtype == before["model.layers.0.mlp.up_proj.weight"].dtype == matrices
    assert read_config(tmp_path / "trained").dtype == torch.float32


def test_layer_outside_all_shards_is_refused(tmp_path):
    with pytest.raises(TangramError, match="no shard of 0-1, 2-3 covers layer 4"):
        read_library(tmp_path, ("0-1", "2-3"))("ffn", "linear", 4)
