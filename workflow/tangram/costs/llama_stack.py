"""GGUF files of random weights for timing in llama.cpp: speed depends on shapes and types, and not on values.

A file has the architecture `deci`, whose layers are an attention (or a linear map, or nothing) and an FFN. A child is
the sequence of its subblocks; `pack` puts them into such layers. A layer whose FFN is missing gets a *stub*, as
llama.cpp requires an FFN beside an attention. `export.gguf` writes children in the same way, with their weights.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangram.blocks.architecture import Architecture
from tangram.blocks.base import HEAD
from tangram.costs.parts import Part, Sizes, parts_of
from tangram.models.families import Shape

if TYPE_CHECKING:
    import numpy as np

STUB = 32  # channels of an FFN that computes nothing: the block of every quantized type


@dataclass(frozen=True)
class Layer:
    """A layer of `deci`: an attention or linear map, and an FFN; without an FFN it has a stub."""

    mixer: Part | None = None
    ffn: Part | None = None


def pack(parts: Iterable[Part]) -> list[Layer]:
    """Return a sequence of parts as layers; a linear map's bias is the stub's, so no FFN joins its layer."""
    layers: list[Layer] = []
    waiting: Part | None = None
    for part in parts:
        if part.form == "ffn":
            layers.append(Layer(waiting, part))
            waiting = None
            continue
        if waiting is not None:
            layers.append(Layer(waiting))
        waiting = part
        if part.form == "linear":
            layers.append(Layer(part))
            waiting = None
    return [*layers, Layer(waiting)] if waiting is not None else layers


def stubs(parts: Iterable[Part]) -> int:
    """Return the number of stubs that a sequence of parts needs."""
    return sum(layer.ffn is None for layer in pack(parts))


def layers_of(architecture: Architecture, shape: Shape) -> list[Layer]:
    """Return a model's layers; see `parts_of` for errors."""
    pieces = [(kind, variant) for _, kind, variant in architecture.pieces() if kind != HEAD]
    first, *others = pack(part for kind, variant in pieces for part in parts_of(kind, variant, shape))  # type: ignore[arg-type]
    # llama.cpp reads the size of heads from the first layer; a map of zeros there changes nothing.
    return [first if first.mixer else Layer(Part("linear", 0), first.ffn), *others]


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
    hidden, queries = shape.hidden, shape.heads * shape.head_dim
    for i, layer in enumerate(layers):
        mixer, ffn = layer.mixer, layer.ffn
        if mixer is not None and mixer.form == "linear":
            yield f"blk.{i}.attn_output", hidden, hidden, mixer.precision
        elif mixer is not None:
            keys = mixer.size * shape.head_dim
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
    writer.add_head_count([shape.heads if layer.mixer else 0 for layer in layers])
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
