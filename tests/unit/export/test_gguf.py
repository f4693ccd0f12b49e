"""Children as GGUF files: llama.cpp's logits against torch's, for every variant, mix and type of tensors."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from export_children import ARCHITECTURES, child_on_disk, random_tokens
from gguf import GGUFReader
from tiny_children import FEWER_HEADS, LAYERS, PARENT_ONLY, STRUCTURED, UNIFORM
from tiny_models import write_parent

from tangram import llama_cpp
from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.child.assemble import load_weights, save_child
from tangram.errors import TangramError
from tangram.export.gguf import write_gguf
from tangram.export.parts import read_checkpoint
from tangram.models.loading import load_model, load_tokenizer

needs_llama_cpp = pytest.mark.skipif(llama_cpp.find() is None, reason=f"llama.cpp: {llama_cpp.INSTALL}")
FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "llama-biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 8},
    "mistral": {"sliding_window": None},
    "qwen2": {"head_dim": 8},
}


@pytest.fixture(scope="module", params=FAMILIES)
def parent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny parent on disk of a family."""
    folder = tmp_path_factory.mktemp(request.param)
    write_parent(folder, request.param.partition("-")[0], num_hidden_layers=LAYERS, **FAMILIES[request.param])
    return folder


def logits_of(path: Path, tokens: torch.Tensor, passes: tuple[int, ...] | None = None) -> torch.Tensor:
    """Return llama.cpp's logits."""
    with llama_cpp.Model(path) as model:
        return torch.from_numpy(model.logits(tokens.tolist(), passes))


def divergence(expected: torch.Tensor, logits: torch.Tensor) -> float:
    """Return KL(expected || logits) in nats per token."""
    p, q = expected.double().log_softmax(-1), logits.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@needs_llama_cpp
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_llama_cpp_computes_the_childs_logits(parent: Path, tmp_path: Path, name: str) -> None:
    folder = child_on_disk(parent, tmp_path / "child", ARCHITECTURES[name])
    write_gguf(read_checkpoint(folder), tmp_path / "model.gguf")
    child = load_model(folder)
    for sequences, length, passes in ((1, 3, None), (3, 100, None), (2, 40, (17, 1, 1, 21))):
        tokens = random_tokens(sequences, length)
        expected, logits = child(tokens).logits, logits_of(tmp_path / "model.gguf", tokens, passes)
        assert divergence(expected, logits) < 1e-8
        assert (logits - expected).abs().max() < 1e-3 * expected.abs().max()


@needs_llama_cpp
@pytest.mark.parametrize(("family", "head_dim"), [("llama", 8), ("mistral", 16)])
@torch.no_grad()
def test_llama_cpp_computes_fewer_query_heads(tmp_path: Path, family: str, head_dim: int) -> None:
    write_parent(tmp_path / "parent", family, num_hidden_layers=LAYERS, head_dim=head_dim)
    layers = (LayerChoice("heads-2@f16", "parent"), *FEWER_HEADS.layers[1:])
    for architecture in (FEWER_HEADS, Architecture(layers), Architecture((LayerChoice("heads-2"),) * LAYERS)):
        folder = child_on_disk(tmp_path / "parent", tmp_path / "child", architecture)
        write_gguf(read_checkpoint(folder), tmp_path / "model.gguf")
        child, tokens = load_model(folder), random_tokens(3, 60)
        logits = logits_of(tmp_path / "model.gguf", tokens, (17, 1, 1, 41))
        assert divergence(child(tokens).logits, logits) < (1e-3 if architecture.layers == layers else 1e-8)
    reader = GGUFReader(tmp_path / "model.gguf")
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.attention.head_count"].contents() == 2


@needs_llama_cpp
@pytest.mark.parametrize("precision", ["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
@torch.no_grad()
def test_types_of_pieces_are_those_of_tensors(tmp_path: Path, precision: str) -> None:
    write_parent(tmp_path / "parent", num_hidden_layers=LAYERS)
    at = f"@{precision}"
    layers = (
        LayerChoice(f"parent{at}", f"width-0.5{at}"),
        LayerChoice(f"gqa-1{at}", "parent"),
        LayerChoice("parent", f"linear{at}"),
        LayerChoice(f"linear{at}", f"parent{at}"),
        LayerChoice(),
    )
    folder = child_on_disk(tmp_path / "parent", tmp_path / "child", Architecture(layers, f"parent{at}"))
    write_gguf(read_checkpoint(folder), tmp_path / "model.gguf")
    reader = GGUFReader(tmp_path / "model.gguf")
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in reader.tensors}
    assert types["blk.0.attn_q.weight"] == types["blk.0.ffn_down.weight"] == types["output.weight"] == precision
    assert types["blk.1.ffn_up.weight"] == "f32"
    assert types["token_embd.weight"] == ("f32" if precision == "bf16" else "f16")
    child, tokens = load_model(folder), random_tokens(3, 60)
    expected, logits = child(tokens).logits, logits_of(tmp_path / "model.gguf", tokens)
    assert divergence(expected, logits) < 2e-3  # llama.cpp rounds the inputs, too
    assert (logits - expected).norm() < 0.03 * expected.norm()


@needs_llama_cpp
@torch.no_grad()
def test_floats_can_be_stored_in_another_type(parent: Path, tmp_path: Path) -> None:
    write_gguf(read_checkpoint(parent), tmp_path / "model.gguf", floats="f16")
    reader = GGUFReader(tmp_path / "model.gguf")
    matrices = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    assert matrices == {"F16"}
    tokens = random_tokens(2, 40)
    assert divergence(load_model(parent)(tokens).logits, logits_of(tmp_path / "model.gguf", tokens)) < 1e-5


@needs_llama_cpp
def test_rows_without_whole_blocks_stay_f16(tmp_path: Path) -> None:
    write_parent(tmp_path / "parent", num_hidden_layers=LAYERS, intermediate_size=40)
    write_gguf(read_checkpoint(tmp_path / "parent"), tmp_path / "model.gguf", floats="q4_0")
    types = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "model.gguf").tensors if len(t.shape) > 1}
    assert {kind for name, kind in types.items() if "ffn_down" in name} == {"F16"}
    assert {kind for name, kind in types.items() if "ffn_up" in name} == {"Q4_0"}
    logits_of(tmp_path / "model.gguf", random_tokens(1, 4))


@needs_llama_cpp
@pytest.mark.parametrize("rope_type", ["linear", "yarn", "llama3"])
@torch.no_grad()
def test_scaled_rotary_frequencies_are_the_childs(tmp_path: Path, rope_type: str) -> None:
    more = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if rope_type == "llama3" else {}
    rope = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 4.0, **more}
    if rope_type != "linear":
        rope["original_max_position_embeddings"] = 32
    write_parent(tmp_path / "parent", num_hidden_layers=LAYERS, rope_parameters=rope)
    folder = child_on_disk(tmp_path / "parent", tmp_path / "child", ARCHITECTURES["mixed"])
    write_gguf(read_checkpoint(folder), tmp_path / "model.gguf")
    tokens = random_tokens(2, 120)
    expected, logits = load_model(folder)(tokens).logits, logits_of(tmp_path / "model.gguf", tokens)
    assert divergence(expected, logits) < 1e-6


@needs_llama_cpp
def test_uniform_children_have_their_familys_architecture(tmp_path: Path) -> None:
    for family in ("llama", "mistral", "qwen2", "qwen3"):
        write_parent(tmp_path / family, family, num_hidden_layers=LAYERS, head_dim=8)
        folder = child_on_disk(tmp_path / family, tmp_path / f"{family}-child", UNIFORM)
        write_gguf(read_checkpoint(folder), tmp_path / f"{family}.gguf")
        reader = GGUFReader(tmp_path / f"{family}.gguf")
        expected = "llama" if family == "mistral" else family
        assert reader.fields["general.architecture"].contents() == expected
        tokens = random_tokens(2, 40)
        with torch.no_grad():
            logits = load_model(folder)(tokens).logits
        assert divergence(logits, logits_of(tmp_path / f"{family}.gguf", tokens)) < 1e-8


@needs_llama_cpp
def test_texts_have_the_childs_tokens(parent: Path, tmp_path: Path) -> None:
    write_gguf(read_checkpoint(parent), tmp_path / "model.gguf")
    tokenizer = load_tokenizer(parent)
    with llama_cpp.Model(tmp_path / "model.gguf") as model:
        for text in (
            "Il était une fois 1234567 modèles",
            "def f(x):\n\n    return x  + 1",
            "<|im_start|>user<|im_end|>",
        ):
            assert model.tokenize(text) == tokenizer(text)["input_ids"]
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


def test_equal_children_give_equal_bytes(parent: Path, tmp_path: Path) -> None:
    for name in ("one.gguf", "two.gguf"):
        write_gguf(read_checkpoint(parent), tmp_path / name, {"tangram.code": "0123"})
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


AT_Q8 = Architecture((LayerChoice("parent@q8_0"), *PARENT_ONLY.layers[1:]))
REFUSED = {
    "int8": (replace(AT_Q8, head="parent@int8"), {}, "the head has precision int8"),
    "factors": (STRUCTURED, {}, "attention of layer 0 is 'butterfly-8'.*no format"),
    "no attention": (Architecture((LayerChoice("linear"),) * LAYERS), {}, "no model without any attention"),
    "biases of other widths": (UNIFORM, {"attention_bias": True}, "biases of heads"),
    "biases of fewer heads": (FEWER_HEADS, {"attention_bias": True, "head_dim": 8}, "biases of heads"),
    "activation": (UNIFORM, {"hidden_act": "gelu"}, "activation gelu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_gguf_can_express_is_one_line(tmp_path: Path, name: str) -> None:
    architecture, settings, message = REFUSED[name]
    write_parent(tmp_path / "parent", num_hidden_layers=LAYERS, **settings)
    folder = child_on_disk(tmp_path / "parent", tmp_path / "child", architecture)
    with pytest.raises(TangramError, match=message) as caught:
        write_gguf(read_checkpoint(folder), tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(("family", "settings"), [("qwen3", {}), ("mistral", {"sliding_window": 16})])
def test_a_familys_own_computation_is_refused(tmp_path: Path, family: str, settings: dict) -> None:
    write_parent(tmp_path / "parent", family, num_hidden_layers=LAYERS, **settings)
    folder = child_on_disk(tmp_path / "parent", tmp_path / "child", ARCHITECTURES["mixed"])
    with pytest.raises(TangramError, match=r"qwen3 whose layers differ|window of 16"):
        write_gguf(read_checkpoint(folder), tmp_path / "model.gguf")


def test_a_piece_off_its_types_grid_is_refused(tmp_path: Path) -> None:
    write_parent(tmp_path / "parent", num_hidden_layers=LAYERS)
    folder = child_on_disk(tmp_path / "parent", tmp_path / "child", AT_Q8)
    child, state = read_checkpoint(folder), load_weights(folder)
    state["model.layers.0.self_attn.q_proj.weight"][0, 0] += 1e-4
    save_child(state, child.config, tmp_path / "parent", folder, {})
    with pytest.raises(TangramError, match=r"blk\.0\.attn_q\.weight .attention of layer 0. would change in type q8_0"):
        write_gguf(read_checkpoint(folder), tmp_path / "model.gguf")


def test_an_unknown_pre_tokenizer_is_one_line(parent: Path, tmp_path: Path) -> None:
    folder = child_on_disk(parent, tmp_path / "child", PARENT_ONLY)
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["pre_tokenizer"] = {"type": "Whitespace"}
    path.write_text(json.dumps(raw))
    with pytest.raises(
        TangramError, match=r"gguf: the tokenizer \(BPE, pre-tokenizer Whitespace\) is of no known kind"
    ):
        write_gguf(read_checkpoint(folder), tmp_path / "model.gguf")
