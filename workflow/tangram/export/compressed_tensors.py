"""Matrices of 8 bits as the package compressed-tensors stores them, and vLLM computes with them.

A matrix has an integer or float8 `weight` with a `weight_scale` per row; inputs are rounded with a scale per token, as
in `models.quantized`. There are no smoothing factors: they become part of the norm or of the matrix that gives the
input, exactly up to rounding (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438, section 4).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tangram.errors import TangramError
from tangram.export.parts import LINEAR, Part, Tensors

if TYPE_CHECKING:
    import torch

SAME_INPUT = {"attention": ("q_proj", "k_proj", "v_proj"), "ffn": ("gate_proj", "up_proj")}
# By kind: the matrix whose outputs, times something, are the input of another one.
SOURCES = {"attention": ("v_proj", "o_proj"), "ffn": ("up_proj", "down_proj")}


def absorb_smoothing(part: Part, head_dim: int) -> Part:
    """Return a subblock of 8 bits that computes the same without smoothing factors, its scales by their stored names.

    Args:
        part: the subblock.
        head_dim: width of an attention head.

    Raises:
        TangramError: an output projection's factors differ between query heads that read the same values.
    """
    if part.form == LINEAR:
        return replace(part, norm=part.norm * part.tensors["smooth"], tensors=stored(part.tensors))
    tensors = {name: tensor for name, tensor in part.tensors.items() if not name.endswith(".smooth")}
    smooth = {name.removesuffix(".smooth"): t for name, t in part.tensors.items() if name.endswith(".smooth")}
    first, *others = SAME_INPUT[part.form]
    if any(not smooth[name].equal(smooth[first]) for name in others):
        raise TangramError(f"decilm: {part.origin} has matrices of one input with different smoothing factors")
    source, target = SOURCES[part.form]
    factors = smooth[target]
    if part.form == "attention":
        factors = _per_value(part, factors, head_dim)
    for name in (f"{source}.scale", f"{source}.bias"):
        if name in tensors:
            tensors[name] = tensors[name] * factors
    return replace(part, norm=part.norm * smooth[first], tensors=stored(tensors))


def _per_value(part: Part, factors: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Return an output projection's factors ``(heads * head_dim,)`` by channel of the values, ``(kv * head_dim,)``."""
    kv_heads = len(part.tensors["v_proj.weight"]) // head_dim
    by_head = factors.view(kv_heads, -1, head_dim)
    if (by_head != by_head[:, :1]).any():
        raise TangramError(
            f"decilm: {part.origin} has smoothing factors that differ between query heads of one KV head, which vLLM "
            "cannot express; quantize its piece in a run whose target has decilm in targets.*.export"
        )
    return by_head[:, 0].flatten()


def stored(tensors: Tensors) -> Tensors:
    """Return tensors by compressed-tensors' names; scales become columns, smoothing factors are left out."""
    renamed = {}
    for name, tensor in tensors.items():
        prefix, _, last = name.rpartition(".")
        if last == "scale":
            renamed[f"{prefix}.weight_scale" if prefix else "weight_scale"] = tensor[:, None]
        elif last != "smooth":
            renamed[name] = tensor
    return renamed
