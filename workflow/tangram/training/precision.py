"""Training in low precision: weights are kept and gradients added up in float32; passes compute in the run's dtype.

A bfloat16 number has eight significant bits: a step of less than 1/512 of a weight would be rounded away. Each forward
pass therefore takes its weights rounded from float32 ones, as the checkpoint will hold them. Parameters that are
float32 already, such as a loss's own, stay as they are, and so does a training in float32, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

Dtypes = Mapping[nn.Parameter, torch.dtype]


def promote(module: nn.Module) -> Dtypes:
    """Make a module's trained parameters float32, in place; return the lower dtypes that some of them had."""
    lower = {p: p.dtype for p in module.parameters() if p.requires_grad and p.dtype.itemsize < 4}
    for parameter in lower:
        parameter.data = parameter.data.float()
    return lower


def round_back(dtypes: Dtypes) -> None:
    """Undo `promote`, in place: values are rounded to nearest, and gradients are dropped."""
    for parameter, dtype in dtypes.items():
        parameter.grad = None
        parameter.data = parameter.data.to(dtype)


class Rounded(nn.Module):
    """A module that computes with its promoted parameters rounded to the dtypes that they had.

    Gradients flow through the rounding as if it were not there, and arrive in float32.

    Args:
        module: its forward pass returns the loss.
        dtypes: what `promote` returned.
    """

    def __init__(self, module: nn.Module, dtypes: Dtypes):
        super().__init__()
        self.module, self._dtypes = module, dtypes

    def forward(self, *arguments: Any) -> Any:
        """Return what the module returns."""
        named = self.module.named_parameters()
        rounded = {name: p.to(self._dtypes[p]) for name, p in named if p in self._dtypes}
        return torch.func.functional_call(self.module, rounded, arguments)
