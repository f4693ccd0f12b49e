"""Two thin matrices instead of each matrix of a subblock: a truncated SVD in the metric of the activations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tangram.blocks.base import PRECISIONS, register
from tangram.blocks.projections import Projections

if TYPE_CHECKING:
    import torch


def principal_outputs(weight: torch.Tensor, moment: torch.Tensor | None, rank: int) -> torch.Tensor:
    """Return the ``rank`` orthonormal directions of largest output energy ``W x``, ``(out, rank)``.

    ``U Uᵀ W`` is the best matrix of that rank (Eckart and Young, in the metric of ``C = E[x xᵀ]``). The smaller of
    ``W C Wᵀ`` and ``Lᵀ Wᵀ W L`` is decomposed, with ``C = L Lᵀ``.

    Args:
        weight: W, ``(out, in)``.
        moment: C, ``(in, in)``; the identity by default.
        rank: at most the smaller of ``out`` and ``in``.
    """
    import torch

    root = weight if moment is None else weight @ torch.linalg.cholesky(moment)
    if root.shape[0] <= root.shape[1]:
        return torch.linalg.eigh(root @ root.t())[1][:, -rank:].flip(1)
    right = torch.linalg.eigh(root.t() @ root)[1][:, -rank:].flip(1)
    return torch.linalg.qr(root @ right)[0]


def fit_low_rank(operator: Any, weight: torch.Tensor, moment: torch.Tensor | None = None) -> None:
    """Set a `LowRankLinear` to the truncated SVD in the metric of the inputs; both factors get equal scales.

    Args:
        operator: the operator, changed in place.
        weight: ``(out, in)``.
        moment: ``E[x xᵀ]`` of the inputs, ``(in, in)``; the identity by default.
    """
    import torch

    with torch.no_grad():
        weight, moment = weight.double(), None if moment is None else moment.double()
        up = principal_outputs(weight, moment, operator.rank)
        down = up.t() @ weight
        balance = (down.norm(dim=1) + 1e-12).sqrt()
        operator.down.copy_(down / balance[:, None])
        operator.up.copy_(up * balance)


@register
class LowRank(Projections):
    """`lowrank-R`: matrices of rank R."""

    family, form, sizes = "lowrank", "lowrank-R", int
    label, hue = "r{size}", ("#b5d6a3", "#3b7d2e")
    precisions = PRECISIONS

    def weights_of(self, columns: int, rows: int) -> float:
        """Return the weights of both factors; infinite if R exceeds the matrix's largest possible rank."""
        return self.size * (columns + rows) if self.size <= min(columns, rows) else math.inf

    def fit(self, operator: Any, weight: torch.Tensor, moment: torch.Tensor) -> None:
        """Set the factors in closed form; see `fit_low_rank`."""
        fit_low_rank(operator, weight, moment)
