"""Modern losses to compare with, from `pytorch-metric-learning`, every one with its own normalised embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


def triplet_margin(margin: float = 0.2) -> nn.Module:
    """Return the triplet loss with a margin over all triplets of a batch (FaceNet, arXiv 1503.03832)."""
    from pytorch_metric_learning.losses import TripletMarginLoss

    return TripletMarginLoss(margin=margin)


def supervised_contrastive(temperature: float = 0.1) -> nn.Module:
    """Return SupCon (arXiv 2004.11362), a function of embeddings ``(n, d)`` and labels ``(n,)``."""
    from pytorch_metric_learning.losses import SupConLoss

    return SupConLoss(temperature=temperature)


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float = 0.5) -> torch.Tensor:
    """Return SimCLR's loss (arXiv 2002.05709) of two views of the same images, each ``(n, d)``."""
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return SelfSupervisedLoss(NTXentLoss(temperature=temperature))(first, second)
