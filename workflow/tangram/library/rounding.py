"""Rounding of a matrix to 8 bits: smoothing factors, to nearest, or with compensation of the error (GPTQ).

Smoothing: SmoothQuant, Xiao et al. 2023, arXiv 2211.10438. Compensation: Frantar et al. 2023, arXiv 2210.17323.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tangram.models.quantized import Int8Linear, ScaledLinear

DAMPING = 0.01  # of GPTQ: share of the mean of the second moments' diagonal
COLUMNS = 64  # per block of GPTQ's updates
PART = 16_384  # tokens per product of a moment: float32 copies of a whole split would not fit a GPU


@dataclass
class Statistics:
    """Statistics of one matrix's inputs.

    Attributes:
        largest: largest absolute value of each channel, ``(in,)``.
        moment: second moments, ``(in, in)``, float64.
    """

    largest: torch.Tensor
    moment: torch.Tensor

    @classmethod
    def of(cls, inputs: torch.Tensor) -> Statistics:
        """Return the statistics of inputs ``(tokens, in)``."""
        width = inputs.shape[1]
        statistics = cls(inputs.new_zeros(width), torch.zeros(width, width, dtype=torch.float64, device=inputs.device))
        for part in inputs.split(PART):
            statistics.add(part)
        return statistics

    def add(self, inputs: torch.Tensor) -> None:
        """Add inputs ``(tokens, in)``."""
        self.largest = torch.maximum(self.largest, inputs.abs().amax(0))
        self.moment += (inputs.float().t() @ inputs.float()).double()


@contextlib.contextmanager
def recorded(matrices: Mapping[str, nn.Module]) -> Iterator[dict[str, Statistics]]:
    """Yield the statistics of the inputs that matrices get meanwhile, by the matrices' names."""
    statistics: dict[str, Statistics] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            inputs = args[0].flatten(0, -2)
            if name in statistics:
                statistics[name].add(inputs)
            else:
                statistics[name] = Statistics.of(inputs)

        return hook

    hooks = [module.register_forward_pre_hook(record(name)) for name, module in matrices.items()]
    try:
        yield statistics
    finally:
        for handle in hooks:
            handle.remove()


def smoothing(statistics: Statistics, weights: list[torch.Tensor], exponent: float) -> torch.Tensor:
    """Return the factors on the inputs of matrices ``(out, in)`` with equal inputs, ``(in,)`` float32."""
    if exponent == 0:
        return torch.ones_like(statistics.largest, dtype=torch.float32)
    rows = torch.stack([weight.float().abs().amax(0) for weight in weights]).amax(0)
    inputs = statistics.largest.float().clamp_min(1e-5)
    return rows.clamp_min(1e-5) ** (1 - exponent) / inputs**exponent


def shared_by_values(smooth: torch.Tensor, kv_heads: int, head_dim: int) -> torch.Tensor:
    """Return an output projection's factors, ``(in,)``, with their geometric mean over the query heads of a KV head.

    Then the values can take them up: engines without smoothing factors, such as vLLM, compute the same.
    """
    by_head = smooth.log().view(kv_heads, -1, head_dim)
    return by_head.mean(1, keepdim=True).exp().expand_as(by_head).flatten()


def round_to_nearest(weight: torch.Tensor, layer: type[ScaledLinear] = Int8Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a float32 matrix ``(out, in)`` to a class's dtype with a scale per row, ``(out,)``."""
    scale = weight.abs().amax(1).clamp_min(1e-12) / layer.largest
    return layer.rounded(weight / scale[:, None]), scale


def round_compensated(
    weight: torch.Tensor, moment: torch.Tensor, layer: type[ScaledLinear] = Int8Linear
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round column by column; the columns that remain compensate the error on the inputs (GPTQ).

    Args:
        weight: float32, ``(out, in)``.
        moment: second moments of the inputs, ``(in, in)``, float64.
        layer: the class whose dtype the weights get.
    """
    _, scale = round_to_nearest(weight, layer)
    damped = moment + DAMPING * moment.diagonal().mean().clamp_min(1e-12) * torch.eye(len(moment)).to(moment)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    weight, rounded = weight.clone(), torch.empty_like(weight, dtype=layer.dtype)
    for first in range(0, weight.shape[1], COLUMNS):
        block = slice(first, min(first + COLUMNS, weight.shape[1]))
        columns, errors = weight[:, block].t().contiguous(), []  # by column, so that updates read adjacent memory
        local = factor[block, block]
        for j in range(len(columns)):
            q = rounded[:, first + j] = layer.rounded(columns[j] / scale)
            error = (columns[j] - q.float() * scale) / local[j, j]
            columns[j + 1 :] -= local[j, j + 1 :, None] * error
            errors.append(error)
        weight[:, block.stop :] -= torch.stack(errors, dim=1) @ factor[block, block.stop :]
    return rounded, scale
