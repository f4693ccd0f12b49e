"""Butterfly gadgets in place of a subblock's matrices (arXiv 2007.08864)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import register
from tangram.blocks.projections import Projections

if TYPE_CHECKING:
    import torch

LEARNING_STEPS = 40  # steps that initialize a butterfly's angles, before block-wise distillation


@register
class Butterfly(Projections):
    """`butterfly-K`: a dense core of at most K x K between two butterfly factors."""

    family, form, sizes = "butterfly", "butterfly-K", int
    label, hue = "b{size}", ("#d9b3a0", "#a8502f")

    def weights_of(self, columns: int, rows: int) -> float:
        """Return the number of weights of the core; the factors add few."""
        return min(self.size, columns) * min(self.size, rows)

    def fit(self, operator: Any, weight: torch.Tensor, moment: torch.Tensor) -> None:
        """Initialize the operator's weights; the angles are learned for `LEARNING_STEPS` steps."""
        from tangram_studies.blocks.fitting import from_dense

        from_dense(operator, weight, moment, LEARNING_STEPS)
