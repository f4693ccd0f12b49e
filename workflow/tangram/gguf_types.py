"""Rounding to the types of GGUF tensors: float tensors whose values llama.cpp reads back unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tangram import llama_cpp
from tangram.blocks.base import CONFIG_NAME, GGUF_PRECISIONS, KINDS
from tangram.errors import TangramError
from tangram.models.families import subblock

if TYPE_CHECKING:
    import numpy as np
    import torch


K_QUANTS = ("q4_k", "q6_k")  # types that only llama.cpp itself writes


def block_size(precision: str) -> int:
    """Return the number of weights in a row that share a scale; 1 for plain floats."""
    import gguf

    return int(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[precision.upper()]][0])


def encode(weight: torch.Tensor, precision: str, where: str) -> np.ndarray:
    """Return a tensor's bytes in a type: the nearest floats, or rows of blocks of bytes.

    Args:
        weight: float, of one or two dimensions.
        precision: the type, such as ``'q8_0'``.
        where: the tensor's name, for messages.

    Raises:
        TangramError: the rows have no whole number of blocks; or llama.cpp has to write them and is not installed.
    """
    import gguf
    import numpy as np

    size = block_size(precision)
    if weight.shape[-1] % size:
        raise TangramError(
            f"{where} has rows of {weight.shape[-1]} weights, but {precision} stores them in blocks of {size}; "
            f"choose f16, or a width that is a multiple of {size}"
        )
    kind = gguf.GGMLQuantizationType[precision.upper()]
    values = weight.detach().float().cpu().contiguous().numpy()
    if precision in K_QUANTS:
        return llama_cpp.quantize(values, kind)
    return np.asarray(gguf.quants.quantize(values, kind))


def decode(data: np.ndarray, precision: str) -> torch.Tensor:
    """Return the float32 values of `encode`'s bytes."""
    import gguf
    import torch

    kind = gguf.GGMLQuantizationType[precision.upper()]
    return torch.from_numpy(gguf.quants.dequantize(data, kind).astype("float32"))


def rounded(weight: torch.Tensor, precision: str, where: str) -> torch.Tensor:
    """Return a matrix rounded to a type, in its own dtype and on its own device.

    Raises:
        TangramError: see `encode`; or the matrix's dtype cannot hold the values.
    """
    import torch

    values = decode(encode(weight, precision, where), precision)
    result = values.to(weight)
    if not torch.equal(result.float().cpu(), values):
        raise TangramError(f"{where}: {weight.dtype} cannot hold the values of {precision}; set dtype: float32")
    return result


def round_pieces(model: Any) -> None:
    """Round the matrices of a child's pieces that have one of these types, in place, as after training."""
    import torch

    with torch.no_grad():
        for where, linear, precision in _pieces_of(model):
            linear.weight.copy_(rounded(linear.weight, precision, where))


def _pieces_of(model: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield name, linear layer and type of every matrix of a model's pieces with one of these types."""
    from torch import nn

    config = model.config
    for index, layer in enumerate(model.model.layers if getattr(config, "per_layer_config", None) else ()):
        precisions = dict(entry.split("=") for entry in config.per_layer_config[index].precision)
        for kind in KINDS:
            precision = precisions.get(CONFIG_NAME[kind])
            if precision in GGUF_PRECISIONS:
                for name, module in subblock(layer, kind).named_children():
                    if isinstance(module, nn.Linear):
                        yield f"layer {index}, {kind}, {name}", module, precision
    if getattr(config, "head_precision", None) in GGUF_PRECISIONS:
        yield "the head", model.lm_head, config.head_precision
