"""The file of a parent in a recipe of mixed types, as llama.cpp's quantizer makes it."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from tiny_models import write_parent

from tangram import llama_cpp
from tangram.export.gguf import write_gguf
from tangram.export.gguf_recipe import has_more_bits
from tangram.export.parts import read_checkpoint
from tangram.models.loading import load_model

needs_llama_cpp = pytest.mark.skipif(llama_cpp.find() is None, reason=f"llama.cpp: {llama_cpp.INSTALL}")


def test_layers_of_more_bits_are_those_of_published_files():
    # of Llama 3.1 8B in Q4_K_M, whose attn_v and ffn_down are Q6_K in these layers
    assert [i for i in range(32) if has_more_bits(i, 32)] == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


@needs_llama_cpp
@pytest.mark.parametrize("hidden", [256, 64])
@torch.no_grad()
def test_tensors_have_the_types_of_the_recipe(tmp_path, hidden):
    sizes = {"hidden_size": hidden, "num_attention_heads": 4, "head_dim": hidden // 4, "intermediate_size": 512}
    write_parent(tmp_path, num_hidden_layers=8, tie_word_embeddings=True, **sizes)
    parent = read_checkpoint(tmp_path)
    files = {name: tmp_path / f"{name}.gguf" for name in ("q4_k_m", "q4_0")}
    for name, path in files.items():
        write_gguf(parent, path, floats=name)
    reader = GGUFReader(files["q4_k_m"])
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    few, many = ("Q4_K", "Q6_K") if hidden == 256 else ("Q5_0", "Q8_0")  # 64 columns are no block of a K-quant
    assert types.pop("token_embd.weight") == many
    downs = {"Q4_K": few, "Q6_K": many} if hidden == 256 else {"Q4_K": "Q4_K", "Q6_K": "Q6_K"}
    for layer in range(8):
        kind = "Q6_K" if layer in (0, 3, 6, 7) else "Q4_K"
        assert types.pop(f"blk.{layer}.ffn_down.weight") == downs[kind]
        assert types.pop(f"blk.{layer}.attn_v.weight") == (many if kind == "Q6_K" else few)
    assert set(types.values()) == {few}
    assert reader.get_field("general.file_type").contents() == 15
    tokens = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    expected = load_model(tmp_path)(tokens).logits
    errors = []
    for path in files.values():
        with llama_cpp.Model(path) as model:
            errors.append((torch.from_numpy(model.logits(tokens.tolist())) - expected).norm() / expected.norm())
    assert errors[0] < errors[1]


@needs_llama_cpp
def test_k_quants_are_near_their_values():
    matrix = np.random.default_rng(0).standard_normal((5, 512), dtype=np.float32)
    for name, bits in (("Q4_K", 4), ("Q6_K", 6)):
        kind = GGMLQuantizationType[name]
        values = dequantize(llama_cpp.quantize(matrix, kind), kind)
        error = np.abs(values - matrix).reshape(5, -1, 32).max(-1)
        assert (error <= 1.5 * np.ptp(matrix.reshape(5, -1, 32), axis=-1) / 2**bits).all()
