"""Layers of llama.cpp's architecture `deci`, into which a child's subblocks are packed, and the stubs that they need.

A layer is an attention (or a linear map, or nothing) and an FFN; a layer whose FFN is missing gets a *stub*, an FFN of
zeros. The cost of a subblock is measured beside the parent's other one, so a sum of costs can count more stubs than the
model has: a no-op FFN costs the stub beside an attention, and nothing if the attention is a no-op, too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tangram.blocks.architecture import LayerChoice, pieces_of
from tangram.blocks.base import NO_OP, PARENT
from tangram.blocks.registry import block_class

STUB_PIECE = ("ffn", NO_OP)  # beside the parent's attention it costs a stub, and nothing else
_ATTENTION_ALONE, _FFN_ALONE = LayerChoice(PARENT, NO_OP), LayerChoice(NO_OP, PARENT)


@dataclass(frozen=True)
class Part:
    """A subblock as llama.cpp computes it.

    Attributes:
        form: ``'attention'``, ``'linear'`` (a matrix and a bias), ``'unbiased'`` (a matrix) or ``'ffn'``.
        size: KV heads, or channels; 0 for a linear map.
        precision: type of its matrices, such as ``'q8_0'``; None for float32.
        heads: query heads of an attention; None for the parent's number.
    """

    form: str
    size: int
    precision: str | None = None
    heads: int | None = None


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


def forms(layer: LayerChoice) -> list[str]:
    """Return the forms of a layer's parts, in order."""
    parts = [(kind, block_class(variant).part) for kind, variant in pieces_of(layer)]
    return [form for kind, part in parts if (form := kind if part is None else part)]


def needed(*layers: LayerChoice) -> int:
    """Return the number of stubs that a sequence of a child's layers needs."""
    return stubs(Part(form, 0) for layer in layers for form in forms(layer))


@functools.cache
def counted(layer: LayerChoice) -> int:
    """Return the number of stubs in the costs of a layer's subblocks, each of them beside the parent's other one."""
    return needed(LayerChoice(layer.attention, PARENT)) + needed(LayerChoice(PARENT, layer.ffn))


@functools.cache
def waits_for_ffn(layer: LayerChoice) -> bool:
    """Return whether a layer's last stub is needless if an FFN follows."""
    return needed(layer, _FFN_ALONE) < needed(layer)


@functools.cache
def begins_with_ffn(layer: LayerChoice) -> bool:
    """Return whether a layer begins with an FFN, so that it takes the place of an earlier layer's stub."""
    return needed(_ATTENTION_ALONE, layer) < needed(_ATTENTION_ALONE) + needed(layer)


@functools.cache
def is_empty(layer: LayerChoice) -> bool:
    """Return whether a layer has no subblock, so that the layers around it are neighbors."""
    return not forms(layer)


def excess(layers: Sequence[LayerChoice]) -> int:
    """Return the number of stubs in the costs of all subblocks that the model does not need."""
    return sum(map(counted, layers)) - needed(*layers)
