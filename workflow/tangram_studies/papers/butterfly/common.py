"""Scales, random matrices and image matrices of the experiments."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from tangram_studies.blocks.operators import ButterflyFactor
from tangram_studies.blocks.sketching import compressed
from tangram_studies.data.fashion_mnist import Images


@dataclass(frozen=True)
class Scale:
    """The size of the experiments."""

    norms: tuple[int, ...]
    powers: int
    sketch_n: int
    autoencoder_images: int
    autoencoder_steps: int
    train: int
    test: int
    hidden: int
    epochs: int
    sketch_matrices: int
    sketch_steps: int
    speed_n: int


SCALES = {
    "small": Scale((256, 1024), 12, 1024, 192, 120, 3072, 4000, 512, 4, 120, 150, 1024),
    "full": Scale((256, 1024, 4096), 13, 1024, 1024, 3000, 60000, 10000, 1024, 20, 500, 4000, 4096),
}


def generator(seed: int) -> torch.Generator:
    """Return a new generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def orthonormal(n: int, k: int, seed: int) -> torch.Tensor:
    """Return random orthonormal columns, ``(n, k)``."""
    return torch.linalg.qr(torch.randn(n, k, generator=generator(seed)))[0]


def jl(n: int, k: int, seed: int) -> torch.Tensor:
    """Return a fast Johnson-Lindenstrauss transform, ``(k, n)``."""
    return ButterflyFactor(n, k, truncation="random", scale=math.sqrt(n / k), seed=seed).matrix().detach()


def padded_images(images: np.ndarray, seed: int) -> torch.Tensor:
    """Return images as columns, ``(1024, images)``: padded to 32 x 32 with small noise, coordinates permuted.

    As in 2007.08864, section 6.2.
    """
    random = np.random.default_rng(seed)
    canvas = random.normal(0, 0.1, (len(images), 32, 32))
    canvas[:, 2:30, 2:30] = images / 255.0
    flat = canvas.reshape(len(images), -1)[:, random.permutation(1024)]
    return torch.from_numpy(flat.T.astype(np.float32))


def matrices(images: Images, scale: Scale, seed: int) -> dict[str, torch.Tensor]:
    """Return the matrices to approximate, ``(n, d)``, squared norm n each."""
    from sklearn.datasets import load_digits

    n, random = scale.sketch_n, np.random.default_rng(seed)
    chosen = random.choice(len(images.train_images), scale.autoencoder_images, replace=False)
    digits = torch.from_numpy(load_digits().data.T[random.permutation(64)].astype(np.float32))
    data = {"Fashion-MNIST": padded_images(images.train_images[chosen], seed), "digits": digits}
    for name, rank in (("Gaussian 1", 32), ("Gaussian 2", 64)):  # 2007.08864, table 2
        coefficients = 0.1 * torch.randn(rank, n, generator=generator(seed + rank))
        data[name] = orthonormal(n, rank, seed + rank) @ coefficients
    return {name: _normalized(compressed(x)) for name, x in data.items()}


def _normalized(x: torch.Tensor) -> torch.Tensor:
    return x * math.sqrt(len(x)) / x.norm()
