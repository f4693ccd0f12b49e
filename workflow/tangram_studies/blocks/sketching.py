"""Low-rank approximation through a sketch: encoder-decoder butterfly networks and learned sketches.

2007.08864, sections 5 and 7. A sketch B, ``(l, n)``, of a matrix X, ``(n, d)``, is good for rank k if the best matrix
of rank k with rows in the span of BX is near to X.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from tangram_studies.blocks.operators import ButterflyFactor


def sketch_size(k: int, epsilon: float, n: int) -> int:
    """Return ``l = k log k + k / ε``, at least k and at most n (Sarlos 2006; 2007.08864, proposition 2)."""
    return min(n, max(k, math.ceil(k * math.log(k) + k / epsilon)))


def sketch_loss(sketch: torch.Tensor, x: torch.Tensor, k: int) -> torch.Tensor:
    """Return ``‖X − B_k(X)‖²``, the error of the best rank-k matrix with rows in the span of BX.

    Computed in float64 from ``X Xᵀ``, so that gradients need no derivatives of singular vectors. A tiny ridge allows
    empty and duplicate rows of B.

    Args:
        sketch: B, ``(l, n)``, l ≤ d.
        x: ``(..., n, d)``.
        k: rank, at most l.

    Returns:
        Errors, ``(...)``, in the dtype of ``x``.
    """
    wide, b = x.double(), sketch.double()
    gram = wide @ wide.mT
    crossed = b @ gram  # BX Xᵀ, (..., l, n)
    sketch_gram = crossed @ b.mT
    ridge = 1e-12 * sketch_gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    root = torch.linalg.cholesky(
        sketch_gram + ridge * torch.eye(len(b), dtype=sketch_gram.dtype, device=sketch_gram.device)
    )
    inside = torch.linalg.solve_triangular(root, crossed, upper=False)
    captured = torch.linalg.eigvalsh(inside @ inside.mT)[..., -k:].sum(-1)
    total: torch.Tensor = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (total - captured).to(x.dtype)


def optimal_loss(x: torch.Tensor, k: int) -> torch.Tensor:
    """Return ``Δ_k``, the error of the best matrix of rank k (PCA), ``(...)``, of ``(..., n, d)``."""
    return torch.linalg.svdvals(x)[..., k:].square().sum(-1)


def compressed(x: torch.Tensor) -> torch.Tensor:
    """Return a matrix with the same ``X Xᵀ`` and as many columns as its rank; losses here depend only on that."""
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    rank = int((s > s[0] * 1e-7 * max(x.shape)).sum())
    return u[:, :rank] * s[:rank]


def sigma(sketched: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return ``Σ(B) = Y X̃ᵀ (X̃ X̃ᵀ)⁻¹ X̃ Yᵀ`` with ``X̃ = BX``, ``(m, m)`` (theorem 1).

    Args:
        sketched: X̃, ``(l, d)``.
        target: Y, ``(m, d)``.
    """
    crossed = target @ sketched.mT
    return crossed @ torch.linalg.solve(sketched @ sketched.mT, crossed.mT)


class EncoderDecoderButterfly(nn.Module):
    """``Ȳ = D E B X``: a butterfly B ``(l, n)``, E ``(k, l)`` and D ``(m, k)`` (2007.08864, section 5).

    Args:
        n: rows of X.
        l: rows of the butterfly.
        k: rank.
        m: rows of Y.
        seed: seed of all initial weights.
    """

    def __init__(self, n: int, l: int, k: int, m: int, seed: int = 0):  # noqa: E741 - the paper's letters
        super().__init__()
        self.butterfly = ButterflyFactor(n, l, truncation="random", padding="power-of-2", seed=seed)
        generator = torch.Generator().manual_seed(seed)
        self.encoder = nn.Parameter((torch.rand(k, l, generator=generator) * 2 - 1) / math.sqrt(l))
        self.decoder = nn.Parameter((torch.rand(m, k, generator=generator) * 2 - 1) / math.sqrt(k))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map the columns of ``(n, d)`` to those of ``(m, d)``."""
        return self.decoder @ (self.encoder @ self.butterfly(x.t()).t())

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return ``‖Ȳ − Y‖²``."""
        return (self(x) - y).square().sum()

    @torch.no_grad()
    def solve(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set D and E to their joint optimum for the current B: phase one of two-phase learning, in closed form.

        ``D = U_k``, the first eigenvectors of Σ(B), and ``E = U_kᵀ Y X̃ᵀ (X̃ X̃ᵀ)⁻¹`` (theorem 1). Their norms
        are balanced.
        """
        sketched, target = self.butterfly(x.t()).t().double(), y.double()
        gram = sketched @ sketched.t()
        gram += 1e-12 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        crossed = target @ sketched.t()
        regression = torch.linalg.solve(gram, crossed.t()).t()  # (m, l)
        vectors = torch.linalg.eigh(regression @ crossed.t())[1][:, -self.decoder.shape[1] :]
        encoder = vectors.t() @ regression
        balance = math.sqrt(float(encoder.norm() / vectors.norm()))
        self.decoder.copy_(vectors * balance)
        self.encoder.copy_(encoder / balance)


def descend(module: nn.Module, loss: Callable[[], torch.Tensor], steps: int, rate: float) -> list[float]:
    """Minimize with Adam and a cosine schedule down to a tenth of the rate; restore the best weights at the end.

    Args:
        module: module to train, in place.
        loss: returns the loss of the current weights.
        steps: steps of Adam.
        rate: initial learning rate.

    Returns:
        The loss before each step, and after the last.
    """
    parameters = list(module.parameters())
    optimizer = torch.optim.Adam(parameters, lr=rate)
    curve, best, best_weights = [], math.inf, [p.detach().clone() for p in parameters]
    for step in range(steps + 1):
        value = loss()
        curve.append(value.item())
        if curve[-1] < best:
            best, best_weights = curve[-1], [p.detach().clone() for p in parameters]
        if step == steps:
            break
        optimizer.param_groups[0]["lr"] = rate * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.no_grad():
        for parameter, value in zip(parameters, best_weights, strict=True):
            parameter.copy_(value)
    return curve


def two_phase_fit(
    model: EncoderDecoderButterfly, x: torch.Tensor, y: torch.Tensor, steps: int, rate: float
) -> tuple[float, list[float]]:
    """Train as in 2007.08864, section 5: first D and E with the random B, then all three; in place.

    Returns:
        The loss after phase one, which `solve` solves exactly, and the losses of phase two by step.
    """
    model.solve(x, y)
    with torch.no_grad():
        first = model.loss(x, y).item()
    return first, descend(model, lambda: model.loss(x, y), steps, rate)


class LearnedSketch(nn.Module):
    """A sketch B, ``(l, n)``, with learned values in a fixed pattern (section 7; Indyk et al. 2019).

    Args:
        n: columns.
        l: rows.
        pattern: ``'butterfly'``: a truncated butterfly; ``'sparse'``: ``nonzeros`` random entries per column;
            ``'dense'``: all entries.
        nonzeros: entries per column of the sparse pattern; 1 is initially the sketch of Clarkson and Woodruff.
        seed: seed of the pattern and of the initial values.
    """

    mask: torch.Tensor

    def __init__(
        self,
        n: int,
        l: int,  # noqa: E741 - the paper's letter
        pattern: Literal["butterfly", "sparse", "dense"] = "butterfly",
        nonzeros: int = 1,
        seed: int = 0,
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.pattern = pattern
        if pattern == "butterfly":
            self.factor = ButterflyFactor(n, l, truncation="random", padding="power-of-2", seed=seed)
            return
        mask = torch.ones(l, n)
        values = torch.randn(l, n, generator=generator) / math.sqrt(l)
        if pattern == "sparse":
            order = torch.rand(l, n, generator=generator).argsort(0)
            mask = (order < nonzeros).float()
            values = (torch.randint(0, 2, (l, n), generator=generator) * 2.0 - 1) / math.sqrt(nonzeros)
        self.register_buffer("mask", mask)
        self.values = nn.Parameter(values * mask)

    def matrix(self) -> torch.Tensor:
        """Return B, ``(l, n)``."""
        return self.factor.matrix() if self.pattern == "butterfly" else self.values * self.mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``B X``, ``(..., l, d)``, of ``(..., n, d)``."""
        return self.matrix() @ x

    def fit(self, x: torch.Tensor, k: int, steps: int, rate: float, batch: int, seed: int = 0) -> list[float]:
        """Minimize the mean of `sketch_loss` over ``(matrices, n, d)`` by minibatches; in place."""
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(self.parameters(), lr=rate)
        curve = []
        for step in range(steps):
            chosen = x[torch.randperm(len(x), generator=generator)[:batch]]
            loss = sketch_loss(self.matrix(), chosen, k).mean()
            curve.append(loss.item())
            optimizer.param_groups[0]["lr"] = rate * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return curve
