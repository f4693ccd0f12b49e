"""Low rank of which one factor is random and stays so (arXiv 2210.04807)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tangram.blocks.base import register
from tangram.blocks.projections import Projections

if TYPE_CHECKING:
    import torch


@register
class FactorThatStaysRandom(Projections):
    """`ntk-K`: matrices of rank K, of whose two factors one is random and stays so."""

    family, form, sizes = "ntk", "ntk-K", int
    label, hue = "n{size}", ("#d8d29a", "#8a7d1c")

    def weights_of(self, columns: int, rows: int) -> float:
        """Return those of both factors; a rank that the matrix cannot have is no operator."""
        return self.size * (columns + rows) if self.size <= min(columns, rows) else math.inf

    def fit(self, operator: Any, weight: torch.Tensor, moment: torch.Tensor) -> None:
        """Set the operator's weights in closed form."""
        from tangram_studies.blocks.fitting import from_dense

        from_dense(operator, weight, moment)
