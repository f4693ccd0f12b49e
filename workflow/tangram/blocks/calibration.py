"""Calibration data of a block's initialization: the parent subblock's activations and their moments; regressions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tangram.blocks.moments import Moments, damped, moments_of


@dataclass(frozen=True)
class Calibration:
    """Activations of one parent subblock on the training tokens.

    Attributes:
        inputs: the subblock's inputs, after the norm before it, if it has one, ``(tokens, hidden)``.
        outputs: the outputs of the attention or FFN, before a norm after it and a multiplier, ``(tokens, hidden)``.
        weights: weight of each token, ``(tokens,)``; zero excludes a token.
        ridge: ridge strength of regressions, relative to the mean squared input.
        context: the arguments of the decoder layer (`models.forward.layer_contexts`) for sequences whose tokens the
            others hold in order; None if they are of no sequences.
        selection: how pruned channels are selected, ``'obs'`` or ``'contribution'``; see `blocks/pruning.py`.
        pruning_ridge: ridge strength of pruning.
        measure: returns the moments, read from a file or from a pass over the activations; by default they are computed
            from the attributes above.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    weights: torch.Tensor
    ridge: float
    context: Mapping[str, Any] | None = None
    selection: str = "obs"
    pruning_ridge: float = 0.1
    measure: Callable[[], Moments] | None = None

    def moments(self, parent: Any) -> Moments:
        """Return the moments of the parent's subblock."""
        if self.measure is not None:
            return self.measure()
        return moments_of(parent, self.inputs, self.outputs, self.weights)


def regression_through_zero(moments: Moments, ridge: float, prior: torch.Tensor) -> torch.Tensor:
    """Fit ``outputs ≈ inputs @ map.T`` by weighted ridge regression, shrinking the map towards ``prior``.

    Args:
        moments: of inputs ``(n,)`` and outputs ``(m,)``.
        ridge: strength relative to the mean squared input.
        prior: ``(m, n)``, the map for an infinite ridge.

    Returns:
        The map ``(m, n)``, float32.
    """
    moment, prior64 = moments.input_moment, prior.double()
    crossed = moments.cross_moment - moment @ prior64.T
    return (prior64 + torch.linalg.solve(damped(moment, ridge), crossed).T).float()


def ridge_regression(moments: Moments, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit ``outputs ≈ inputs @ map.T + bias`` by weighted ridge regression, shrinking the map towards zero.

    The normal equations of the centered data are solved in float64, so the bias is not shrunk.

    Args:
        moments: of inputs ``(n,)`` and outputs ``(m,)``.
        ridge: strength relative to the mean weighted variance of the inputs.

    Returns:
        The map ``(m, n)`` and the bias ``(m,)``, float32.
    """
    fitted = torch.linalg.solve(damped(moments.input_covariance, ridge), moments.cross_covariance).T
    return fitted.float(), (moments.output_mean - fitted @ moments.input_mean).float()
