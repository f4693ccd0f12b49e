"""Children as GGUF files: llama.cpp's logits against torch's, for every variant, mix and type of tensors."""

from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from tiny_children import LAYERS, MIXED, PARENT_ONLY, UNIFORM, pieces
from tiny_models import write_parent

from tangram import llama_cpp
from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.child.assemble import assemble_state, build_config, cast_state, load_parent, save_child
from tangram.export.gguf import write_gguf
from tangram.export.parts import read_checkpoint
from tangram.models.loading import load_model

needs_llama_cpp = pytest.mark.skipif(llama_cpp.find() is None, reason=f"llama.cpp: {llama_cpp.INSTALL}")
FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "llama-biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 8},
    "mistral": {"sliding_window": None},
    "qwen2": {"head_dim": 8},
}
ARCHITECTURES = {
    "parent": PARENT_ONLY,
    "uniform": UNIFORM,
    "mixed": MIXED,
    "no-op first": Architecture((LayerChoice("no-op", "no-op"), LayerChoice("no-op"), *PARENT_ONLY.layers[2:])),
    "linear only": Architecture((LayerChoice("linear", "linear"),) * (LAYERS - 1) + (LayerChoice(),)),
    "no FFN": Architecture((LayerChoice("parent", "no-op"),) * LAYERS),
    "linear last": Architecture((*PARENT_ONLY.layers[1:], LayerChoice("gqa-1", "linear"))),
}


@pytest.fixture(scope="module", params=FAMILIES)
def parent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny parent on disk of a family."""
    folder = tmp_path_factory.mktemp(request.param)
    write_parent(folder, request.param.partition("-")[0], num_hidden_layers=LAYERS, **FAMILIES[request.param])
    return folder


def child_on_disk(parent: Path, folder: Path, architecture: Architecture, dtype: torch.dtype = torch.float32) -> Path:
    """Write a child of hand-made pieces."""
    config, state = load_parent(parent)
    library = pieces(load_model(parent))
    state = cast_state(assemble_state(state, architecture, library), architecture, dtype)
    save_child(state, build_config(config, architecture), parent, folder, {})
    return folder


def logits_of(path: Path, tokens: torch.Tensor, passes: tuple[int, ...] | None = None) -> torch.Tensor:
    """Return llama.cpp's logits."""
    with llama_cpp.Model(path) as model:
        return torch.from_numpy(model.logits(tokens.tolist(), passes))


def divergence(expected: torch.Tensor, logits: torch.Tensor) -> float:
    """Return KL(expected || logits) in nats per token."""
    p, q = expected.double().log_softmax(-1), logits.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def random_tokens(sequences: int, length: int) -> torch.Tensor:
    """Return random tokens."""
    return torch.randint(0, 300, (sequences, length), generator=torch.Generator().manual_seed(length))


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
    assert types["token_embd.weight"] == types["blk.1.ffn_up.weight"] == "f32"
    child, tokens = load_model(folder), random_tokens(3, 60)
    expected, logits = child(tokens).logits, logits_of(tmp_path / "model.gguf", tokens)
    assert divergence(expected, logits) < 2e-3  # llama.cpp rounds the inputs, too
    assert (logits - expected).norm() < 0.03 * expected.norm()
