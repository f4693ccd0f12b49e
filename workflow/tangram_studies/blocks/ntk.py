"""Low-rank matrices with one fixed random factor (arXiv 2210.04807)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tangram.blocks.base import PRECISIONS, register
from tangram.blocks.projections import Projections

if TYPE_CHECKING:
    import torch


@register
class FixedRandomFactor(Projections):
    """`ntk-K`: matrices of rank K with one trained and one fixed random factor."""

    family, form, sizes = "ntk", "ntk-K", int
    label, hue = "n{size}", ("#d8d29a", "#8a7d1c")
    precisions = PRECISIONS

    def weights_of(self, columns: int, rows: int) -> float:
        """Return the number of weights of both factors; infinite for a rank above that of the matrix."""
        return self.size * (columns + rows) if self.size <= min(columns, rows) else math.inf

    def fit(self, operator: Any, weight: torch.Tensor, moment: torch.Tensor) -> None:
        """Initialize the operator's weights in closed form."""
        from tangram_studies.blocks.fitting import from_dense

        from_dense(operator, weight, moment)
