"""The search space: what may stand in for a layer's attention or FFN. Users add blocks here.

A block says how its shape differs from the parent's (`overrides`, in transformers' `per_layer_config` terms) and how
its weights begin (`initialise`, training-free). Everything else (training, scores, costs, assembly) is common.
"""

from __future__ import annotations

from tangram.blocks.base import PARENT, Block, ParentBlock
from tangram.blocks.gqa import GroupedQuery
from tangram.blocks.linear import LinearMap
from tangram.blocks.noop import NoOp
from tangram.blocks.structured import NAMES, StructuredProjections
from tangram.blocks.width import NarrowFFN
from tangram.errors import TangramError

__all__ = ["PARENT", "Block", "get_block"]


def get_block(kind: str, variant: str) -> Block:
    """Return the block that a variant's name stands for.

    Raises:
        TangramError: the name is not a variant of ``kind``.
    """
    if variant == PARENT:
        return ParentBlock(kind, variant)
    if variant == "no-op":
        return NoOp(kind, variant)
    if variant == "linear":
        return LinearMap(kind, variant)
    if kind == "attention" and variant.startswith("gqa-"):
        return GroupedQuery(kind, variant)
    if kind == "ffn" and variant.startswith("width-"):
        return NarrowFFN(kind, variant)
    if variant.partition("-")[0] in NAMES:
        return StructuredProjections(kind, variant)
    raise TangramError(f"'{variant}' is not a variant of {kind}")
