"""The papers' convolutional networks, with the width as an argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn


class Convolution(NamedTuple):
    """One convolution: side of its kernel, output channels, and whether max-pooling over 2 × 2 follows."""

    kernel: int
    channels: int
    pool: bool = False


def triplet_layers(width: int) -> list[Convolution]:
    """Return the triplet network's layers (arXiv 1412.6622, section 4, and its authors' code, where width is 64)."""
    return [Convolution(5, width, True), Convolution(3, 2 * width, True), Convolution(3, 4 * width, True)]


def spatial_layers(width: int) -> list[Convolution]:
    """Return layers for spatial contrasting; the appendix of arXiv 1610.00243 with its layers was unreadable."""
    return [Convolution(3, width, True), Convolution(3, 2 * width, True), Convolution(3, 4 * width)]


def metric_layers(width: int) -> list[Convolution]:
    """Return layers in the style of the metric embedding's for MNIST (arXiv 1611.01449's authors' code: width 16).

    The authors' network pools after the fourth convolution, not after the second, and has one more convolution of
    four times the width.
    """
    return [
        Convolution(5, width, True),
        Convolution(3, 2 * width, True),
        Convolution(3, 4 * width),
        Convolution(3, 8 * width),
    ]


class ConvNet(nn.Module):
    """Convolutions, pooling to a small grid, and a linear layer: images to embeddings.

    Args:
        channels: channels of the images.
        layers: the convolutions, each followed by ReLU.
        grid: side of the grid to which the last map is max-pooled; 0 averages over the map.
        dimensions: size of the embedding.
        norm: add batch normalization before each ReLU.
    """

    def __init__(self, channels: int, layers: Sequence[Convolution], grid: int, dimensions: int, norm: bool):
        super().__init__()
        stack: list[nn.Module] = []
        for layer in layers:
            stack.append(nn.Conv2d(channels, layer.channels, layer.kernel, padding=layer.kernel // 2, bias=not norm))
            stack += [nn.BatchNorm2d(layer.channels)] if norm else []
            stack.append(nn.ReLU())
            stack += [nn.MaxPool2d(2)] if layer.pool else []
            channels = layer.channels
        self.features = nn.Sequential(*stack)
        self.pool = nn.AdaptiveMaxPool2d(grid) if grid else nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels * max(1, grid) ** 2, dimensions)
        # A third faster on CPUs; torch's stubs lack the argument.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """Return the input of the linear layer, ``(n, channels · grid²)``."""
        return self.pool(self.features(images)).flatten(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return embeddings ``(n, dimensions)`` of images ``(n, channels, height, width)``."""
        return self.head(self.pooled(images))

    @property
    def filters(self) -> torch.Tensor:
        """The first layer's filters, ``(filters, channels, kernel, kernel)``."""
        first = self.features[0]
        assert isinstance(first, nn.Conv2d)
        return first.weight.detach()
