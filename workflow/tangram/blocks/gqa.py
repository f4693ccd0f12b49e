"""Grouped-query attention with fewer KV heads: groups of the parent's are merged by mean-pooling.

Ainslie et al. 2023 (arXiv 2305.13245); Puzzle (arXiv 2411.19146), appendix A.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import Block
from tangram.models.families import Shape

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration


class GroupedQuery(Block):
    """`gqa-K`: K key-value heads, a divisor of the parent's."""

    @property
    def kv_heads(self) -> int:
        """Key-value heads of this block."""
        return int(self.variant.removeprefix("gqa-"))

    def overrides(self, shape: Shape) -> dict[str, Any]:
        """Return the number of KV heads."""
        return {"num_key_value_heads": self.kv_heads}

    def initialise(self, parent: Any, shape: Shape, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Average the K and V projections (and biases) of each merged group of heads; keep the rest."""
        weights = dict(parent.state_dict())
        for name in [n for n in weights if n.startswith(("k_proj.", "v_proj."))]:
            heads = weights[name].unflatten(0, (self.kv_heads, shape.kv_heads // self.kv_heads, shape.head_dim))
            weights[name] = heads.float().mean(dim=1).flatten(0, 1)
        return weights
