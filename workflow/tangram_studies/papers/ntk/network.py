"""The two-layer network, dense and factorized, its tangent kernel, and data points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from tangram_studies.data.fashion_mnist import Images
from tangram_studies.study import Interval, Study, interval

DENSE, V_FIXED, U_FIXED = ARMS = ("dense", "V fixed", "U fixed")
RESTATED = "restated by us: only the abstract could be read"


@dataclass(frozen=True)
class Scale:
    """The size of the experiments."""

    points: int
    width: int
    widths: tuple[int, ...]
    ranks: tuple[int, ...]
    steps: int
    train: int
    test: int
    image_width: int


SCALES = {
    "small": Scale(100, 2048, (512, 2048, 8192), (8, 16, 32, 64), 120, 400, 1000, 1024),
    "full": Scale(200, 4096, (1024, 4096, 16384), (16, 32, 64, 128, 256), 400, 1000, 4000, 4096),
}


class TwoLayer:
    """A two-layer ReLU network in the NTK parametrization, with its tangent kernel in closed form.

    Args:
        d: dimension of the inputs.
        m: width.
        k: inner width; None for the dense W.
        fixed: ``'V fixed'`` or ``'U fixed'``.
        seed: seed of all weights.
    """

    def __init__(self, d: int, m: int, k: int | None, fixed: str, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.signs = torch.randint(0, 2, (m,), generator=generator) * 2.0 - 1
        self.m, self.k, self.fixed, self.d = m, k, fixed, d
        self.up = self.down = torch.empty(0)
        if k is None:
            self.trained = torch.randn(m, d, generator=generator)
            return
        self.up = torch.randn(m, k, generator=generator)
        self.down = torch.randn(k, d, generator=generator)
        if fixed == V_FIXED:  # E‖Vx‖² = ‖x‖², and rows of U are N(0, I)
            self.down = self.down / math.sqrt(k)
            self.trained = self.up
        else:
            self.up = self.up / math.sqrt(k)
            self.trained = self.down

    @property
    def trainable(self) -> int:
        """The number of trained weights."""
        return self.trained.numel()

    @property
    def macs(self) -> int:
        """Multiply-adds per example of W x."""
        return self.m * self.d if self.k is None else self.k * (self.m + self.d)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``W x``, ``(n, m)``, of ``(n, d)``."""
        if self.k is None:
            return x @ self.trained.t()
        if self.fixed == V_FIXED:
            return (x @ self.down.t()) @ self.trained.t()
        return (x @ self.trained.t()) @ self.up.t()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return f, ``(n,)``."""
        return self.hidden(x).relu() @ self.signs / math.sqrt(self.m)

    def features(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two matrices, ``(n, ·)`` each; the kernel is the elementwise product of their Gram matrices."""
        gates = (self.hidden(x) > 0) * self.signs / math.sqrt(self.m)
        if self.k is None:
            return x, gates
        return (x @ self.down.t(), gates) if self.fixed == V_FIXED else (x, gates @ self.up)

    def kernel(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tangent kernel ``⟨∂f(x_i)/∂θ, ∂f(x_j)/∂θ⟩`` over the trained factor, ``(n, n')``."""
        left, right = self.features(x), self.features(x if other is None else other)
        return (left[0] @ right[0].t()) * (left[1] @ right[1].t())

    def step(self, x: torch.Tensor, y: torch.Tensor, rate: float) -> float:
        """Descend one step of ``½ ‖f − y‖²``; return ``‖f − y‖²`` before it."""
        hidden = self.hidden(x)
        error = hidden.relu() @ self.signs / math.sqrt(self.m) - y
        gates = (hidden > 0) * self.signs / math.sqrt(self.m) * error[:, None]  # (n, m)
        if self.k is None:
            gradient = gates.t() @ x
        elif self.fixed == V_FIXED:
            gradient = gates.t() @ (x @ self.down.t())
        else:
            gradient = (gates @ self.up).t() @ x
        self.trained = self.trained - rate * gradient
        return float(error.square().sum())


def limit_kernel(x: torch.Tensor) -> torch.Tensor:
    """Return the kernel of infinite width for unit inputs, ``x_i·x_j (π − arccos(x_i·x_j)) / 2π``, ``(n, n)``."""
    cosine = (x @ x.t()).clamp(-1, 1)
    return cosine * (math.pi - torch.arccos(cosine)) / (2 * math.pi)


def least_eigenvalue(kernel: torch.Tensor) -> float:
    """Return the least eigenvalue of a kernel, in float64."""
    return float(torch.linalg.eigvalsh(kernel.double())[0])


def distance(kernel: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the Frobenius norm of a difference, relative to the reference."""
    return float((kernel - reference).norm() / reference.norm())


def unit_points(n: int, d: int, seed: int) -> torch.Tensor:
    """Return random points on the sphere, ``(n, d)``."""
    points = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return points / points.norm(dim=1, keepdim=True)


def image_points(images: Images, count: int, seed: int, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pullovers and coats as centered unit rows ``(n, 784)``, and ±1 labels ``(n,)``.

    Args:
        images: Fashion-MNIST.
        count: number of images.
        seed: seed of the draw.
        split: ``'train'`` or ``'test'``.
    """
    pictures, labels = getattr(images, f"{split}_images"), getattr(images, f"{split}_labels")
    two = np.flatnonzero((labels == 2) | (labels == 4))  # two similar classes
    chosen = np.random.default_rng(seed).choice(two, min(count, len(two)), replace=False)
    center = images.train_images[(images.train_labels == 2) | (images.train_labels == 4)].mean(0)
    x = torch.from_numpy(((pictures[chosen] - center) / 255).reshape(len(chosen), -1).astype(np.float32))
    y = torch.from_numpy(np.where(labels[chosen] == 2, 1.0, -1.0).astype(np.float32))
    return x / x.norm(dim=1, keepdim=True), y


def decay(study: Study, experiment: str, arm: str) -> Interval:
    """Return the exponent by which an arm's values fall with x, fitted per seed."""
    rows = study.frame(experiment)
    table = rows[rows["arm"] == arm].pivot(index="seed", columns="x", values="value")
    x = np.log(np.array(table.columns, dtype=float))
    return interval([-float(np.polyfit(x, np.log(row), 1)[0]) for row in table.to_numpy()])
