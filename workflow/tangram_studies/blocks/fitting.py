"""Approximation of a dense matrix by a structured one: activation-aware closed forms, and learned butterfly angles.

The error to minimize is that of the outputs, ``E‖(W − Ŵ) x‖² = tr((W − Ŵ) C (W − Ŵ)ᵀ)`` with ``C = E[x xᵀ]``. Without
activations C is the identity, and the error is the squared Frobenius norm.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import nn

from tangram.blocks.low_rank import fit_low_rank
from tangram.models.operators import LowRankLinear
from tangram_studies.blocks.operators import (
    ButterflyFactor,
    ButterflyLinear,
    MonarchLinear,
    NTKFactorLinear,
)


def relative_error(weight: torch.Tensor, approximation: torch.Tensor, moment: torch.Tensor | None = None) -> float:
    """Return ``sqrt(E‖(W − Ŵ)x‖² / E‖W x‖²)``.

    Args:
        weight: ``(out, in)``.
        approximation: ``(out, in)``.
        moment: ``E[x xᵀ]``, ``(in, in)``; the identity by default.
    """

    def energy(matrix: torch.Tensor) -> float:
        matrix = matrix.double()
        return float(((matrix if moment is None else matrix @ moment.double()) * matrix).sum())

    weight, approximation = weight.detach(), approximation.detach()
    return (max(energy(weight - approximation), 0.0) / energy(weight)) ** 0.5


@functools.singledispatch
def from_dense(operator: nn.Module, weight: torch.Tensor, moment: torch.Tensor | None = None, steps: int = 0) -> None:
    """Set an operator's weights to its closed-form approximation of a dense matrix; in place.

    Args:
        operator: a `StructuredLinear`.
        weight: ``(out, in)``.
        moment: ``E[x xᵀ]`` of the inputs, ``(in, in)``, positive definite; the identity by default.
        steps: steps of learning a butterfly's factors; 0 keeps the random ones. Other operators ignore it.

    Raises:
        TypeError: this operator has no closed form.
    """
    raise TypeError(f"no closed form for {type(operator).__name__}")


@from_dense.register
def _low_rank(
    operator: LowRankLinear, weight: torch.Tensor, moment: torch.Tensor | None = None, steps: int = 0
) -> None:
    """Compute the truncated SVD in the metric of C."""
    fit_low_rank(operator, weight, moment)


@from_dense.register
@torch.no_grad()
def _half_random(
    operator: NTKFactorLinear, weight: torch.Tensor, moment: torch.Tensor | None = None, steps: int = 0
) -> None:
    """Solve least squares for the trained factor."""
    weight = weight.double()
    if operator.fixed == "V":
        down = operator.down.double()
        right = down if moment is None else down @ moment.double()
        operator.up.copy_(torch.linalg.solve(right @ down.t(), right @ weight.t()).t())
    else:
        operator.down.copy_(torch.linalg.lstsq(operator.up.double(), weight).solution)


@from_dense.register
@torch.no_grad()
def _monarch(operator: MonarchLinear, weight: torch.Tensor, moment: torch.Tensor | None = None, steps: int = 0) -> None:
    """Compute the best rank-1 matrix per pair of blocks (2204.00595, section 3.3), inputs weighted by their RMS."""
    inner, outer, width = operator.left.shape
    scale = weight.new_ones(weight.shape[1]) if moment is None else moment.diagonal()
    scale = scale.double().clamp_min(1e-30).sqrt()
    blocks = (weight.double() * scale).view(outer, -1, inner, width).permute(0, 2, 1, 3)  # (j, i, s, p)
    u, s, v = torch.linalg.svd(blocks, full_matrices=False)
    root = s[..., 0].sqrt()[..., None]
    operator.right.copy_((u[..., 0] * root).transpose(1, 2))
    operator.left.copy_((v[..., 0, :] * root).transpose(0, 1) / scale.view(inner, 1, width))


@from_dense.register
def _butterfly(
    operator: ButterflyLinear, weight: torch.Tensor, moment: torch.Tensor | None = None, steps: int = 0
) -> None:
    """Optionally learn the factors by variable projection; then solve for the best core."""
    if steps:
        learn_factors(operator, weight, moment, steps)
    with torch.no_grad():
        j1, j2 = operator.j1.matrix().double(), operator.j2.matrix().double()
        right = j1 if moment is None else j1 @ moment.double()
        left = torch.linalg.solve(j2 @ j2.t(), j2 @ weight.double())
        operator.core.copy_(torch.linalg.solve(right @ j1.t(), right @ left.t()).t())


def unfuse(fused: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two consecutive stages whose product is nearest to a fused one: the inverse of `operators.fuse`.

    Each pair of a lower output and a higher input has its own rank-1 matrix, which an SVD yields; exact for a
    butterfly (Zheng, Riccietti and Gribonval, arXiv 2110.01230).

    Args:
        fused: ``(H, L, r · R, r · R)``.
        size: R, the matrix size of the lower stage.

    Returns:
        ``(H · r, L, R, R)`` and ``(H, L · R, r, r)``.
    """
    higher, lower, total, _ = fused.shape
    radix = total // size
    pairs = fused.view(higher, lower, radix, size, radix, size).permute(0, 1, 3, 4, 2, 5)  # (h, l, a, j, p, i)
    u, s, v = torch.linalg.svd(pairs, full_matrices=False)
    root = s[..., :1].sqrt()
    high = (u[..., 0] * root).permute(0, 2, 1, 4, 3).reshape(higher, size * lower, radix, radix)
    low = (v[..., 0, :] * root).permute(0, 3, 1, 2, 4).reshape(higher * radix, lower, size, size)
    return low, high


@from_dense.register
@torch.no_grad()
def _butterfly_factor(
    operator: ButterflyFactor, weight: torch.Tensor, moment: torch.Tensor | None = None, steps: int = 0
) -> None:
    """Split a square matrix into stages by recursive bisection (arXiv 2110.01230); exact for a butterfly."""
    if operator.keep != operator.size:
        raise TypeError("only a butterfly that keeps all of its rows has a closed form")

    def stages(fused: torch.Tensor, radices: tuple[int, ...]) -> list[torch.Tensor]:
        if len(radices) == 1:
            return [fused]
        middle = len(radices) // 2
        low, high = unfuse(fused, math.prod(radices[:middle]))
        return stages(low, radices[:middle]) + stages(high, radices[middle:])

    for stage, value in zip(operator.stages, stages(weight.double()[None, None], operator.radices), strict=True):
        stage.copy_(value)


class RotatedFactor:
    """A butterfly factor parametrized by Cayley rotations: each small matrix is its initial value times a rotation.

    The angles are unconstrained, so that gradient descent needs no projection, and the rows of J stay orthonormal.
    """

    def __init__(self, factor: ButterflyFactor):
        self.factor = factor
        self.initial = [stage.detach().clone() for stage in factor.stages]
        self.angles = [torch.zeros_like(stage, requires_grad=True) for stage in self.initial]

    def stages(self) -> list[torch.Tensor]:
        """Return the rotated stages."""
        rotated = []
        for initial, angles in zip(self.initial, self.angles, strict=True):
            skew = angles - angles.mT
            eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
            if len(eye) == 2:  # the inverse of I + A is (I - A) / (1 + a²)
                rotation = (eye - skew) @ (eye - skew) / (1 + skew[..., :1, 1:] ** 2)
            else:
                rotation = torch.linalg.solve(eye + skew, eye - skew)
            rotated.append(initial @ rotation)
        return rotated

    def matrix(self) -> torch.Tensor:
        """Return J, ``(keep, features)``."""
        return self.factor.matrix(self.stages())

    @torch.no_grad()
    def write(self) -> None:
        """Copy the rotated stages into the factor."""
        for stage, value in zip(self.factor.stages, self.stages(), strict=True):
            stage.copy_(value)


def learn_factors(
    operator: ButterflyLinear, weight: torch.Tensor, moment: torch.Tensor | None, steps: int, rate: float = 0.06
) -> list[float]:
    """Rotate the stages of both factors to minimize the error of the best core; in place.

    Variable projection eliminates the core, so that Adam learns only angles. The remaining error is
    ``1 − tr(A (J1 C J1ᵀ)⁻¹ Aᵀ) / tr(W C Wᵀ)`` with ``A = J2 W C J1ᵀ``, for factors with orthonormal rows.

    Returns:
        The squared relative error before each step.
    """
    weight = weight.detach().float()
    target = weight if moment is None else weight @ moment.float()
    energy = (target * weight).sum()
    factors = [RotatedFactor(operator.j1), RotatedFactor(operator.j2)]
    optimizer = torch.optim.Adam([angles for factor in factors for angles in factor.angles], lr=rate)
    errors = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        j1, j2 = (factor.matrix() for factor in factors)
        crossed = j2 @ target @ j1.t()
        if moment is not None:
            root = torch.linalg.cholesky(j1 @ moment.float() @ j1.t())
            crossed = torch.linalg.solve_triangular(root, crossed.t(), upper=False)
        loss = 1 - crossed.square().sum() / energy
        errors.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for factor in factors:
        factor.write()
    return errors
