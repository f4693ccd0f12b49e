"""Calibration data of a block's initialization (inputs and outputs of the parent's subblock), and statistics of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tangram.blocks.base import FITTED_TOKENS


@dataclass(frozen=True)
class Calibration:
    """Inputs and outputs of one parent subblock.

    Attributes:
        inputs: the subblock's inputs, after the norm before it, if it has one, ``(tokens, hidden)``.
        outputs: the subblock's contribution to the residual stream, ``(tokens, hidden)``, without a multiplier.
        weights: weight of each token, ``(tokens,)``; zero excludes a token.
        ridge: ridge strength, relative to the mean squared input.
        unnormed: the outputs of the attention or FFN before the norm after it; None without such a norm.
        context: the arguments of the decoder layer (`models.forward.layer_contexts`) for sequences whose tokens the
            others hold in order; None if they are of no sequences.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    weights: torch.Tensor
    ridge: float
    context: Mapping[str, Any] | None = None
    unnormed: torch.Tensor | None = None

    @property
    def module_outputs(self) -> torch.Tensor:
        """The outputs of the attention or FFN, before a norm after it, ``(tokens, hidden)``."""
        return self.outputs if self.unnormed is None else self.unnormed

    def norm_after(self) -> torch.Tensor | None:
        """Return the best factor of each channel in place of the norm after the subblock, ``(hidden,)``, or None."""
        if self.unnormed is None:
            return None
        weights = self.weights[:, None]
        crossed = (weights * self.unnormed * self.outputs).sum(0)
        return crossed / (weights * self.unnormed.square()).sum(0).clamp_min(1e-30)


def second_moment(inputs: torch.Tensor, calibration: Calibration) -> torch.Tensor:
    """Return the weighted second moment ``E[x xᵀ]`` plus the ridge, ``(n, n)``, float64.

    Args:
        inputs: ``(tokens, n)``.
        calibration: the tokens' weights, and the ridge.
    """
    weights = (calibration.weights / calibration.weights.sum())[:, None]
    moment = torch.zeros(2 * inputs.shape[1:], dtype=torch.float64, device=inputs.device)
    for x, weight in zip(inputs.split(FITTED_TOKENS), weights.split(FITTED_TOKENS), strict=True):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        moment += x.t() @ (x * weight.to(x))
    moment = (moment + moment.t()) / 2
    strength = max(calibration.ridge, 1e-8) * moment.diagonal().mean().clamp_min(1e-30)
    return moment + strength * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


def regression_through_zero(calibration: Calibration, prior: torch.Tensor) -> torch.Tensor:
    """Fit ``outputs ≈ inputs @ map.T`` by weighted ridge regression, shrinking the map towards ``prior``.

    Args:
        calibration: inputs ``(tokens, n)``, outputs ``(tokens, m)``, weights, and the ridge's strength relative to the
            mean squared input.
        prior: ``(m, n)``, the map for an infinite ridge.

    Returns:
        The map ``(m, n)``, in the dtype of the inputs.
    """
    weights = (calibration.weights / calibration.weights.sum()).double()[:, None]
    parts = (tensor.split(FITTED_TOKENS) for tensor in (calibration.inputs, calibration.outputs, weights))
    gram, prior64 = second_moment(calibration.inputs, calibration), prior.double()
    crossed = torch.zeros_like(prior64.T)
    for x, y, w in zip(*parts, strict=True):
        crossed += x.double().T @ (w * (y.double() - x.double() @ prior64.T))
    return (prior64 + torch.linalg.solve(gram, crossed).T).to(calibration.inputs.dtype)


def ridge_regression(
    inputs: torch.Tensor, outputs: torch.Tensor, weights: torch.Tensor, ridge: float, prior: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit ``outputs ≈ inputs @ map.T + bias`` by weighted ridge regression, shrinking the map towards ``prior``.

    The normal equations of the centered data are solved in float64, so the bias is not shrunk.

    Args:
        inputs: ``(tokens, n)``.
        outputs: ``(tokens, m)``.
        weights: ``(tokens,)``, non-negative.
        ridge: strength relative to the mean weighted variance of the inputs.
        prior: ``(m, n)``, the map for an infinite ridge.

    Returns:
        The map ``(m, n)`` and the bias ``(m,)``, in the dtype of ``inputs``.
    """
    w = (weights / weights.sum()).double()[:, None]
    parts = list(zip(inputs.split(FITTED_TOKENS), outputs.split(FITTED_TOKENS), w.split(FITTED_TOKENS), strict=True))
    mean_x, mean_y = (torch.stack([(part[2] * part[i].double()).sum(0) for part in parts]).sum(0) for i in (0, 1))
    prior64 = prior.double()
    gram, crossed = prior64.new_zeros(2 * prior64.shape[1:]), torch.zeros_like(prior64.T)
    for part_x, part_y, part_w in parts:
        x, y = part_x.double() - mean_x, part_y.double() - mean_y
        gram += x.T @ (part_w * x)
        crossed += x.T @ (part_w * (y - x @ prior64.T))
    strength = ridge * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    gram += strength * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    fitted = prior64 + torch.linalg.solve(gram, crossed).T
    return fitted.to(inputs.dtype), (mean_y - fitted @ mean_x).to(inputs.dtype)
