"""Baselines: modern losses of `pytorch-metric-learning`, which normalize embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tangram.errors import TangramError

if TYPE_CHECKING:
    from torch import nn


def _losses() -> Any:
    """Return the library's module of losses.

    Raises:
        TangramError: it is not installed.
    """
    try:
        from pytorch_metric_learning import losses
    except ImportError as error:
        raise TangramError(
            "pytorch-metric-learning is missing: pip install pytorch-metric-learning (the extra 'studies')"
        ) from error
    return losses


def require() -> None:
    """Check that the library is installed, before any training.

    Raises:
        TangramError: it is not installed.
    """
    _losses()


def triplet_margin(margin: float = 0.2) -> nn.Module:
    """Return the triplet loss with a margin over all triplets of a batch (FaceNet, arXiv 1503.03832)."""
    return _losses().TripletMarginLoss(margin=margin)


def supervised_contrastive(temperature: float = 0.1) -> nn.Module:
    """Return SupCon (arXiv 2004.11362), a function of embeddings ``(n, d)`` and labels ``(n,)``."""
    return _losses().SupConLoss(temperature=temperature)


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float = 0.5) -> torch.Tensor:
    """Return SimCLR's loss (arXiv 2002.05709) of two views of the same images, each ``(n, d)``.

    Computed by the library's SupCon, which equals NT-Xent for one positive. Its `NTXentLoss` enumerates all pairs of
    positives and negatives of the batch, and takes half a second per step.
    """
    losses = _losses()
    return losses.SelfSupervisedLoss(losses.SupConLoss(temperature=temperature))(first, second)
