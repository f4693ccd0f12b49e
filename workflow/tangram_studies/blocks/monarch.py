"""Monarch matrices in place of a subblock's (arXiv 2204.00595)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tangram.blocks.base import register
from tangram.blocks.projections import Projections

if TYPE_CHECKING:
    import torch


@register
class Monarch(Projections):
    """`monarch`: two block-diagonal factors with a permutation between them."""

    family, form = "monarch", "monarch"
    label, hue = "mon", ("#c8553d", "#c8553d")

    def weights_of(self, columns: int, rows: int) -> float:
        """Return the number of weights of factors with square blocks."""
        return columns * math.sqrt(rows) + rows * math.sqrt(columns)

    def too_large(self) -> str | None:
        """Return None: non-square blocks may have fewer weights; `overrides` compares the exact number."""
        return None

    def fit(self, operator: Any, weight: torch.Tensor, moment: torch.Tensor) -> None:
        """Initialize the operator's weights in closed form."""
        from tangram_studies.blocks.fitting import from_dense

        from_dense(operator, weight, moment)
