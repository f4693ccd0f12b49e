"""Structured matrices in place of a subblock's dense ones: `butterfly-K`, `monarch`, `ntk-K`.

How they begin is in `fitting.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tangram.blocks.base import register
from tangram.blocks.projections import Projections

if TYPE_CHECKING:
    import torch

LEARNING_STEPS = 40  # of a butterfly's angles, before it is trained like any other piece


class Structured(Projections):
    """Operators that are fitted in closed form, or begin so; see `fitting.from_dense`."""

    def fit(self, operator: Any, weight: torch.Tensor, moment: torch.Tensor) -> None:
        """Set the operator's weights; a butterfly's angles are learned for some steps."""
        from tangram.blocks.fitting import from_dense

        from_dense(operator, weight, moment, LEARNING_STEPS)


@register
class Butterfly(Structured):
    """`butterfly-K`: a dense core of at most K x K between two butterfly factors."""

    family, form, sizes = "butterfly", "butterfly-K", int
    label, hue = "b{size}", ("#d9b3a0", "#a8502f")

    def weights_of(self, columns: int, rows: int) -> float:
        """Return those of the core; the factors add a little."""
        return min(self.size, columns) * min(self.size, rows)


@register
class FactorThatStaysRandom(Structured):
    """`ntk-K`: matrices of rank K, of whose two factors one is random and stays so."""

    family, form, sizes = "ntk", "ntk-K", int
    label, hue = "n{size}", ("#d8d29a", "#8a7d1c")

    def weights_of(self, columns: int, rows: int) -> float:
        """Return those of both factors; a rank that the matrix cannot have is no operator."""
        return self.size * (columns + rows) if self.size <= min(columns, rows) else math.inf


@register
class Monarch(Structured):
    """`monarch`: two block-diagonal factors with a permutation between them."""

    family, form = "monarch", "monarch"
    label, hue = "mon", ("#c8553d", "#c8553d")

    def weights_of(self, columns: int, rows: int) -> float:
        """Return those of factors with square blocks."""
        return columns * math.sqrt(rows) + rows * math.sqrt(columns)

    def too_large(self) -> str | None:
        """Return None: blocks may be smaller than square ones, which `overrides` counts."""
        return None
