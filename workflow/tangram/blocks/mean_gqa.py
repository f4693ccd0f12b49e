"""Grouped-query attention whose KV heads are mean-pooled as they are.

Ainslie et al. 2023 (arXiv 2305.13245); Puzzle (arXiv 2411.19146), appendix A.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import register
from tangram.blocks.gqa import GroupedQuery, pooled

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration


@register
class MeanPooled(GroupedQuery):
    """`gqa-mean-K`: the means of the parent's KV heads."""

    family, form = "gqa-mean", "gqa-mean-K"
    label, hue = "m{size}", ("#dcc6e4", "#9a6cb8")

    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Average the K and V projections (and biases) of each merged group of heads; copy all other weights."""
        return pooled(parent.state_dict(), self.kv_heads, self.shape.head_dim)

    def operations_to_fit(self) -> float:
        """Return 0."""
        return 0.0
