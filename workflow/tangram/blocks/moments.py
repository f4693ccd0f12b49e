"""Weighted first and second moments of a subblock's activations, from which pieces are fitted in closed form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from tangram.blocks.base import FITTED_TOKENS


@dataclass(frozen=True)
class Moments:
    """Moments of one subblock over the training tokens; the *inner* activations are the inputs of its last matrix.

    The last matrix is `o_proj` of attention and `down_proj` of an FFN. Weights of tokens add up to 1.

    Attributes:
        input_mean: of the normed inputs x, ``(hidden,)``.
        input_covariance: of x, ``(hidden, hidden)``.
        output_mean: of the contributions y to the residual stream, without a multiplier, ``(hidden,)``.
        cross_covariance: of x with y, ``(hidden, hidden)``.
        inner_mean: of the inner activations h, ``(inner,)``.
        inner_covariance: of h, ``(inner, inner)``.
        inner_magnitude: ``E|h|``, ``(inner,)``.
    """

    input_mean: torch.Tensor
    input_covariance: torch.Tensor
    output_mean: torch.Tensor
    cross_covariance: torch.Tensor
    inner_mean: torch.Tensor
    inner_covariance: torch.Tensor
    inner_magnitude: torch.Tensor

    @property
    def input_moment(self) -> torch.Tensor:
        """``E[x xᵀ]``, ``(hidden, hidden)``."""
        return self.input_covariance + torch.outer(self.input_mean, self.input_mean)

    @property
    def cross_moment(self) -> torch.Tensor:
        """``E[x yᵀ]``, ``(hidden, hidden)``."""
        return self.cross_covariance + torch.outer(self.input_mean, self.output_mean)

    @property
    def inner_moment(self) -> torch.Tensor:
        """``E[h hᵀ]``, ``(inner, inner)``."""
        return self.inner_covariance + torch.outer(self.inner_mean, self.inner_mean)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the moments by name as float32: their own noise is far larger than its rounding."""
        return {name: tensor.float().contiguous() for name, tensor in asdict(self).items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], device: torch.device | str = "cpu") -> Moments:
        """Return moments that `tensors` returned, in float64."""
        return cls(**{field.name: tensors[field.name].to(device).double() for field in fields(cls)})


Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # inputs, inner, outputs, weights of some tokens


def accumulate(parts: Iterable[Part]) -> Moments:
    """Return the moments of tokens that come in parts, in float64.

    Products of the inner activations are computed in float32 and summed in float64. Those of the inputs are computed in
    float64: a regression without bias subtracts large means from them.

    Args:
        parts: normed inputs ``(tokens, hidden)``, inner activations ``(tokens, inner)``, outputs ``(tokens, hidden)``
            and weights ``(tokens,)``.
    """
    total, sums = 0.0, list[torch.Tensor]()
    for inputs, inner, outputs, weights in parts:
        w = weights.double()[:, None]
        x, y, h = inputs.double(), outputs.double(), inner.to(torch.promote_types(inner.dtype, torch.float32))
        weighted = x * w
        terms = [
            weighted.sum(0),
            weighted.t() @ x,
            (y * w).sum(0),
            weighted.t() @ y,
            (h * w.to(h)).sum(0).double(),
            (h.t() @ (h * w.to(h))).double(),
            (h.abs() * w.to(h)).sum(0).double(),
        ]
        total += float(weights.double().sum())
        sums = terms if not sums else [old.add_(new) for old, new in zip(sums, terms, strict=True)]
    mean_x, xx, mean_y, xy, mean_h, hh, magnitude = (term / total for term in sums)
    hh = (hh + hh.t()) / 2
    return Moments(
        mean_x,
        xx - torch.outer(mean_x, mean_x),
        mean_y,
        xy - torch.outer(mean_x, mean_y),
        mean_h,
        hh - torch.outer(mean_h, mean_h),
        magnitude,
    )


def damped(moment: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return a second moment ``(n, n)`` plus ``ridge`` times the mean of its diagonal, in float64."""
    moment = moment.double().clone()
    moment.diagonal().add_(max(ridge, 1e-8) * moment.diagonal().mean().clamp_min(1e-30))
    return moment


def inner_activations(parent: Any, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Return the inputs of a subblock's last matrix, ``(tokens, inner)``, from those of the subblock and its outputs.

    Those of `o_proj` are computed from its outputs: exactly for a square and invertible matrix, otherwise their
    projection on the matrix's row space.
    """
    if hasattr(parent, "down_proj"):
        inner: torch.Tensor = parent.act_fn(parent.gate_proj(inputs)) * parent.up_proj(inputs)
        return inner
    outputs = outputs if parent.o_proj.bias is None else outputs - parent.o_proj.bias
    # The pseudo-inverse, because torch's least squares on a GPU require a matrix of full rank.
    return outputs.double() @ torch.linalg.pinv(parent.o_proj.weight.double()).t()


def moments_between(inputs: torch.Tensor, outputs: torch.Tensor, weights: torch.Tensor) -> Moments:
    """Return the moments of inputs and outputs with the tokens' weights, without inner activations."""
    split = [tensor.split(FITTED_TOKENS) for tensor in (inputs, inputs[:, :0], outputs, weights)]
    return accumulate(zip(*split, strict=True))


def moments_of(parent: Any, inputs: torch.Tensor, outputs: torch.Tensor, weights: torch.Tensor) -> Moments:
    """Return the moments of a subblock from its normed inputs, its outputs and the tokens' weights."""

    def parts() -> Iterator[Part]:
        split = (tensor.split(FITTED_TOKENS) for tensor in (inputs, outputs, weights))
        for x, y, w in zip(*split, strict=True):
            yield x, inner_activations(parent, x, y), y, w

    return accumulate(parts())
