"""Wanda (arXiv 2306.11695): of every four weights of a row, two become zero: the smallest |weight| times input norm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

GROUP, KEPT = 4, 2  # the pattern 2:4, which some GPUs multiply faster


def mask(weight: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Return which weights stay, ``(rows, columns)``.

    Args:
        weight: ``(rows, columns)``; the columns are a multiple of 4.
        norms: of the inputs, ``(columns,)``.
    """
    importance = (weight.abs() * norms).unflatten(1, (-1, GROUP))
    kept = torch.zeros_like(importance, dtype=torch.bool)
    kept.scatter_(2, importance.topk(KEPT, dim=2).indices, True)
    return kept.flatten(1)


def read_norms(path: Path) -> dict[str, torch.Tensor]:
    """Return the norms of the inputs of every matrix, by the matrix's name in the checkpoint."""
    from safetensors.torch import load_file

    return load_file(path)


@torch.no_grad()
def prune(model: nn.Module, norms: Mapping[str, torch.Tensor]) -> None:
    """Set the weights that the mask removes to zero, in place."""
    for name, weight in _matrices(model, norms):
        weight.mul_(mask(weight, norms[name].to(weight.device)))


def keep_zeros(model: nn.Module) -> list[Any]:
    """Make gradients of zero weights zero, so that training keeps them; return the hooks' handles."""
    hooks = []
    for name, weight in model.named_parameters():
        if name.startswith("model.layers.") and weight.dim() == 2:
            alive = weight.detach() != 0
            hooks.append(weight.requires_grad_(True).register_hook(lambda grad, alive=alive: grad * alive))
    return hooks


def _matrices(model: nn.Module, norms: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    yield from ((name, weight) for name, weight in model.named_parameters() if name in norms)
