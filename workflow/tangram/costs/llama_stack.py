"""GGUF files of random weights for timing in llama.cpp: speed depends on shapes and types, and not on values.

A file has the architecture `deci`, with the layers of `llama_layers`. `export.gguf` writes children in the same way,
with their weights.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tangram.blocks import get_block
from tangram.blocks.architecture import Architecture
from tangram.blocks.base import HEAD, Kind
from tangram.costs.llama_layers import Layer, Part, pack
from tangram.engines import LLAMA_CPP
from tangram.errors import TangramError
from tangram.models.families import Shape

if TYPE_CHECKING:
    import numpy as np

STUB = 32  # channels of an FFN that computes nothing: the block of every quantized type


def parts_of(kind: Kind, variant: str, shape: Shape, engine: str = LLAMA_CPP) -> list[Part]:
    """Return a variant as parts: one, or none for a no-op, or for a constant, which is a bias of the part before.

    Raises:
        TangramError: the engine has no such subblock.
    """
    block = get_block(kind, variant, shape)
    overrides, precision = block.overrides(), block.variant.precision
    if block.part == "":
        return []
    if "linear" in overrides:
        return [Part(block.part or "linear", 0, precision)]
    heads = overrides.get("num_attention_heads")
    if overrides.keys() - {"num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size"}:
        raise TangramError(f"{engine} has no {kind} '{variant}'; leave it out of targets with engine: {engine}")
    if kind == "attention":
        return [Part("attention", overrides.get("num_key_value_heads", shape.kv_heads), precision, heads)]
    return [Part("ffn", overrides.get("intermediate_size", shape.intermediate), precision)]


def layers_of(architecture: Architecture, shape: Shape) -> list[Layer]:
    """Return a model's layers; see `parts_of` for errors."""
    pieces = [(kind, variant) for _, kind, variant in architecture.pieces() if kind != HEAD]
    first, *others = pack(part for kind, variant in pieces for part in parts_of(kind, variant, shape))  # type: ignore[arg-type]
    # llama.cpp reads the size of heads from the first layer; a map of zeros there changes nothing.
    zeros = Part("unbiased", 0, "f16" if shape.hidden % STUB else "q4_0")
    return [first if first.mixer else Layer(zeros, first.ffn), *others]


@functools.lru_cache(maxsize=16)
def _matrix(rows: int, columns: int, precision: str | None) -> tuple[np.ndarray, Any]:
    """Return random weights and their type."""
    import gguf
    import numpy as np

    values = np.random.default_rng(rows + columns).uniform(-0.02, 0.02, (rows, columns)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[(precision or "f32").upper()]
    return gguf.quants.quantize(values, kind), kind


def _matrices(layers: Sequence[Layer], shape: Shape) -> Iterator[tuple[str, int, int, str | None]]:
    """Yield name, rows, columns and type of every matrix of the layers."""
    hidden = shape.hidden
    for i, layer in enumerate(layers):
        mixer, ffn = layer.mixer, layer.ffn
        if mixer is not None and mixer.form in ("linear", "unbiased"):
            yield f"blk.{i}.attn_output", hidden, hidden, mixer.precision
        elif mixer is not None:
            keys, queries = mixer.size * shape.head_dim, (mixer.heads or shape.heads) * shape.head_dim
            yield f"blk.{i}.attn_q", queries, hidden, mixer.precision
            yield f"blk.{i}.attn_k", keys, hidden, mixer.precision
            yield f"blk.{i}.attn_v", keys, hidden, mixer.precision
            yield f"blk.{i}.attn_output", hidden, queries, mixer.precision
        channels, precision = (STUB, "q4_0") if ffn is None else (ffn.size, ffn.precision)
        # A stub of zeros has the smallest type that its rows fit into.
        yield f"blk.{i}.ffn_gate", channels, hidden, precision if ffn or hidden % STUB == 0 else "f16"
        yield f"blk.{i}.ffn_up", channels, hidden, precision if ffn or hidden % STUB == 0 else "f16"
        yield f"blk.{i}.ffn_down", hidden, channels, precision


def _vectors(layers: Sequence[Layer]) -> Iterator[str]:
    """Yield the names of norms and of biases, all of the hidden size."""
    for i, layer in enumerate(layers):
        if layer.mixer is not None:
            yield f"blk.{i}.attn_norm.weight"
        yield f"blk.{i}.ffn_norm.weight"
        if layer.ffn is None and layer.mixer is not None and layer.mixer.form == "linear":
            yield f"blk.{i}.ffn_down.bias"


class Sizes(NamedTuple):
    """Numbers of weights, their bytes, and bytes of the KV cache (F16) per token and sequence."""

    parameters: int
    parameter_bytes: int
    kv_bytes_per_token: int


def bytes_of(weights: int, precision: str | None) -> int:
    """Return the bytes of a matrix whose rows are whole blocks of its type."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[(precision or "f32").upper()]]
    return weights // block * size


def sizes_of(layers: Sequence[Layer], shape: Shape) -> Sizes:
    """Return the sizes of layers, stubs included."""
    matrices = [(rows * columns, precision) for _, rows, columns, precision in _matrices(layers, shape)]
    vectors = len(list(_vectors(layers))) * shape.hidden
    return Sizes(
        sum(weights for weights, _ in matrices) + vectors,
        sum(bytes_of(*matrix) for matrix in matrices) + bytes_of(vectors, None),
        sum(layer.mixer.size for layer in layers if layer.mixer) * 2 * shape.head_dim * 2,
    )


def write(
    path: str | Path, layers: Sequence[Layer], shape: Shape, vocabulary: int, positions: int, head: str | None = None
) -> None:
    """Write a model of random weights, whose LM head is its embedding.

    Args:
        path: the file.
        layers: its layers; the first must have an attention, as llama.cpp reads the size of heads there.
        shape: the parent's sizes.
        vocabulary: number of tokens.
        positions: number of positions.
        head: type of embedding and LM head.
    """
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "deci")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(vocabulary)
    writer.add_block_count(len(layers))
    writer.add_context_length(positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length([layer.ffn.size if layer.ffn else STUB for layer in layers])
    writer.add_head_count([(layer.mixer.heads or shape.heads) if layer.mixer else 0 for layer in layers])
    writer.add_head_count_kv([layer.mixer.size if layer.mixer else 0 for layer in layers])
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, rows, columns, precision in [("token_embd", vocabulary, shape.hidden, head), *_matrices(layers, shape)]:
        data, kind = _matrix(rows, columns, precision)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
    for name in ["output_norm.weight", *_vectors(layers)]:
        writer.add_tensor(name, np.ones(shape.hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
