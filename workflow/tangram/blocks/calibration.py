"""What a block's initialisation may look at: the parent subblock's inputs and outputs on calibration tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Calibration:
    """Normed inputs and outputs of one parent subblock.

    Attributes:
        inputs: what the subblock reads, after its norm, ``(tokens, hidden)``.
        outputs: what it adds to the residual stream, ``(tokens, hidden)``.
        weights: importance of each token, ``(tokens,)``; zero leaves a token out.
        ridge: ridge strength, relative to the mean squared input.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    weights: torch.Tensor
    ridge: float


def ridge_regression(
    inputs: torch.Tensor, outputs: torch.Tensor, weights: torch.Tensor, ridge: float, prior: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit ``outputs ≈ inputs @ map.T + bias`` by weighted ridge regression, shrinking the map towards ``prior``.

    Solved in float64 by the normal equations on centred data, so the bias is not shrunk.

    Args:
        inputs: ``(tokens, n)``.
        outputs: ``(tokens, m)``.
        weights: ``(tokens,)``, non-negative.
        ridge: strength relative to the mean weighted variance of the inputs.
        prior: ``(m, n)``, the map at infinite ridge.

    Returns:
        The map ``(m, n)`` and the bias ``(m,)``, in the dtype of ``inputs``.
    """
    x, y, w = inputs.double(), outputs.double(), (weights / weights.sum()).double()[:, None]
    mean_x, mean_y = (w * x).sum(0), (w * y).sum(0)
    x, y, prior64 = x - mean_x, y - mean_y, prior.double()
    gram = x.T @ (w * x)
    strength = ridge * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    residual = y - x @ prior64.T
    gram = gram + strength * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    fitted = prior64 + torch.linalg.solve(gram, x.T @ (w * residual)).T
    return fitted.to(inputs.dtype), (mean_y - fitted @ mean_x).to(inputs.dtype)
