"""Recipes that mix types: the type that llama.cpp's own quantizer gives each tensor of a file."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tangram.engines import RECIPES
from tangram.gguf_types import block_size

MORE_BITS = ("attn_v", "ffn_down")  # get more bits in some layers
SMALLER_BLOCKS = {"q4_k": "q5_0", "q6_k": "q8_0"}  # instead of types that do not divide a row


def has_more_bits(layer: int, layers: int) -> bool:
    """Return whether Q4_K_M gives some matrices of a layer 6 bits: at both ends, and in each third layer between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def tensor_type(tensor: Any, tensors: Collection[Any], layers: int) -> str:
    """Return the type of a tensor in a file of Q4_K_M.

    Args:
        tensor: has the attributes of `gguf.Tensor`, with the recipe's name as its type if it is to be quantized.
        tensors: all tensors of the file.
        layers: number of layers.
    """
    if tensor.type not in RECIPES:
        return str(tensor.type)
    tied = all(other.name != "output.weight" for other in tensors)
    *_, stem, _ = tensor.name.split(".")
    many = stem in MORE_BITS and has_more_bits(int(tensor.name.split(".")[1]), layers)
    is_head = stem == "output" or (stem == "token_embd" and tied)
    kind = "q6_k" if many or is_head else "q4_k"
    columns = tensor.values.shape[-1]
    if columns % block_size(kind):
        kind = SMALLER_BLOCKS[kind]
    return "f16" if columns % block_size(kind) else kind
