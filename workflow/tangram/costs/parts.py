"""Subblocks as engines see them that know attention, FFNs and linear maps; and costs as sums of measured times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from tangram.blocks import get_block
from tangram.blocks.base import Kind
from tangram.engines import LLAMA_CPP
from tangram.errors import TangramError
from tangram.models.families import Shape

Measured = TypeVar("Measured")  # something whose time is measured


@dataclass(frozen=True)
class Part:
    """A subblock as an engine computes it whose layers are those of a Llama.

    Attributes:
        form: ``'attention'``, ``'linear'`` (a matrix and a bias) or ``'ffn'``.
        size: KV heads, or channels; 0 for a linear map.
        precision: type of its matrices, such as ``'q8_0'``; None for the run's dtype.
    """

    form: str
    size: int
    precision: str | None = None


def parts_of(kind: Kind, variant: str, shape: Shape, engine: str = LLAMA_CPP) -> list[Part]:
    """Return a variant as parts: one, or none for a no-op.

    Raises:
        TangramError: the engine has no such subblock.
    """
    block = get_block(kind, variant, shape)
    overrides, precision = block.overrides(), block.variant.precision
    if "skip" in overrides:
        return []
    if "linear" in overrides:
        return [Part("linear", 0, precision)]
    if overrides.keys() - {"num_key_value_heads", "intermediate_size"}:
        raise TangramError(f"{engine} has no {kind} '{variant}'; leave it out of targets with engine: {engine}")
    if kind == "attention":
        return [Part("attention", overrides.get("num_key_value_heads", shape.kv_heads), precision)]
    return [Part("ffn", overrides.get("intermediate_size", shape.intermediate), precision)]


class Sizes(NamedTuple):
    """Numbers of weights, their bytes, and bytes of the KV cache per token and sequence."""

    parameters: int
    parameter_bytes: int
    kv_bytes_per_token: int


def added(*terms: tuple[float, Mapping[Measured, float]]) -> dict[Measured, float]:
    """Return the weighted sum of sums, each of which holds the weights of measured times."""
    total: dict[Measured, float] = {}
    for factor, term in terms:
        for one, weight in term.items():
            total[one] = total.get(one, 0.0) + factor * weight
    return {one: weight for one, weight in total.items() if weight}
