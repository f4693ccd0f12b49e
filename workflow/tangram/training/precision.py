"""Mixed-precision training: float32 master weights and gradients, forward and backward passes in the run's dtype.

A bfloat16 number has eight significant bits, so an update of less than 1/512 of a weight would be rounded to zero. Each
forward pass rounds the float32 weights to the dtype of the checkpoint. Nothing changes for float32 parameters, such as
those of a loss, or for a training in float32. `autocast` lowers the precision of matrix products alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

Dtypes = Mapping[nn.Parameter, torch.dtype]


def autocast(device: torch.device, compute: str) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which matrix products are computed in a dtype; float32 leaves each its operands' dtype.

    Args:
        device: device of the trained module.
        compute: ``'float32'`` or ``'bfloat16'``.
    """
    return torch.autocast(device.type, torch.bfloat16) if compute == "bfloat16" else contextlib.nullcontext()


def fast_compute(device: str) -> str:
    """Return the data type of matrix products that a device has units for: ``'bfloat16'``, else ``'float32'``."""
    if device == "cuda":
        return "bfloat16"
    units = torch.cpu.get_capabilities()
    return "bfloat16" if any(units.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else "float32"


def promote(module: nn.Module) -> Dtypes:
    """Convert a module's trained parameters to float32 in place; return the previous dtypes of the converted ones."""
    lower = {p: p.dtype for p in module.parameters() if p.requires_grad and p.dtype.itemsize < 4}
    for parameter in lower:
        parameter.data = parameter.data.float()
    return lower


def round_back(dtypes: Dtypes) -> None:
    """Undo `promote` in place: round to nearest, and delete the gradients."""
    for parameter, dtype in dtypes.items():
        parameter.grad = None
        parameter.data = parameter.data.to(dtype)


class Rounded(nn.Module):
    """A module that computes with its promoted parameters rounded to their previous dtypes.

    The gradient of the rounding is the identity (straight-through); gradients are float32.

    Args:
        module: a module whose forward pass returns the loss.
        dtypes: the result of `promote`.
    """

    def __init__(self, module: nn.Module, dtypes: Dtypes):
        super().__init__()
        self.module, self.dtypes = module, dtypes

    def forward(self, *arguments: Any) -> Any:
        """Return the module's outputs."""
        named = self.module.named_parameters()
        rounded = {name: p.to(self.dtypes[p]) for name, p in named if p in self.dtypes}
        return torch.func.functional_call(self.module, rounded, arguments)


@contextlib.contextmanager
def as_stored(module: nn.Module) -> Iterator[None]:
    """Round all promoted parameters of a module to their previous dtypes, as a checkpoint stores them, for a while.

    They must have no gradients.
    """
    dtypes = {p: dtype for part in module.modules() if isinstance(part, Rounded) for p, dtype in part.dtypes.items()}
    masters = {parameter: parameter.data for parameter in dtypes}
    try:
        for parameter, dtype in dtypes.items():
            parameter.data = parameter.data.to(dtype)
        yield
    finally:
        for parameter, data in masters.items():
            parameter.data = data
