"""Low rank plus a butterfly gadget. No variant uses this operator, so no child checkpoint contains this file."""

from __future__ import annotations

from typing import Any

import torch

from tangram.models.operators import LowRankLinear, StructuredLinear, Tensors, pair
from tangram_studies.blocks.fitting import from_dense
from tangram_studies.blocks.operators import ButterflyLinear


class LowRankPlusButterfly(StructuredLinear):
    """The sum of a low-rank matrix and a butterfly gadget for its residual.

    Args:
        in_features: columns.
        out_features: rows.
        rank: rank of the low-rank matrix.
        k_in: rows of the gadget's J1.
        k_out: rows of the gadget's J2.
        bias: add a bias.
        options: options of the gadget's factors, see `ButterflyFactor`.
    """

    kernels = {"dense": "dense", "pair": "dense", "feature": "feature"}  # noqa: RUF012
    trained = "feature"

    def __init__(
        self, in_features: int, out_features: int, rank: int, k_in: int, k_out: int, bias: bool = False, **options: Any
    ):
        super().__init__(in_features, out_features, bias)
        self.low_rank = LowRankLinear(in_features, out_features, rank)
        self.gadget = ButterflyLinear(in_features, out_features, k_in, k_out, **options)

    def matrix(self) -> torch.Tensor:
        """Return the sum of both matrices."""
        return self.low_rank.matrix() + self.gadget.matrix()

    def tensors(self, form: str) -> Tensors:
        """Return the parts' tensors, or both as one pair, or the dense matrix."""
        if form == "dense":
            return (self.matrix(),)
        parts = (self.low_rank.tensors("pair"), self.gadget.tensors(form))
        if form == "pair":
            (down, up), (more_down, more_up) = parts
            return torch.cat([down, more_down]), torch.cat([up, more_up], dim=1)
        return (*parts[0], *parts[1])

    def compute(self, form: str, x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, in_features)`` to ``(tokens, out_features)`` in one form."""
        if form in ("dense", "pair"):
            return super().compute(form, x, *tensors)
        return pair(x, *tensors[:2]) + self.gadget.compute(form, x, *tensors[2:])

    def calls(self, form: str) -> int:
        """Return the kernels of a form."""
        return super().calls(form) if form in ("dense", "pair") else 2 + self.gadget.calls(form)

    def macs(self, form: str | None = None) -> int:
        """Return the multiply-adds per token of a form."""
        if form == "dense":
            return self.in_features * self.out_features
        return self.low_rank.macs() + self.gadget.macs(form)

    def effective_weights(self) -> int:
        """Return the weights on a path from an input to an output."""
        return self.low_rank.effective_weights() + self.gadget.effective_weights()


@from_dense.register
def _hybrid(
    operator: LowRankPlusButterfly, weight: torch.Tensor, moment: torch.Tensor | None = None, steps: int = 0
) -> None:
    """Fit the low-rank part, then the gadget to the residual."""
    from_dense(operator.low_rank, weight, moment)
    from_dense(operator.gadget, weight - operator.low_rank.matrix().detach(), moment, steps)
