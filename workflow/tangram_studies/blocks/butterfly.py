"""Butterfly gadgets in place of a subblock's matrices (arXiv 2007.08864)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import register
from tangram.blocks.projections import Projections

if TYPE_CHECKING:
    import torch

LEARNING_STEPS = 40  # of a butterfly's angles, before it is trained like any other piece


@register
class Butterfly(Projections):
    """`butterfly-K`: a dense core of at most K x K between two butterfly factors."""

    family, form, sizes = "butterfly", "butterfly-K", int
    label, hue = "b{size}", ("#d9b3a0", "#a8502f")

    def weights_of(self, columns: int, rows: int) -> float:
        """Return those of the core; the factors add a little."""
        return min(self.size, columns) * min(self.size, rows)

    def fit(self, operator: Any, weight: torch.Tensor, moment: torch.Tensor) -> None:
        """Set the operator's weights; the angles are learned for some steps."""
        from tangram_studies.blocks.fitting import from_dense

        from_dense(operator, weight, moment, LEARNING_STEPS)
