"""Linear layers with matrices in a lower precision than the model's dtype, in plain torch.

This file is copied into every child checkpoint that has the model's code, so it imports no package but torch. The
residual stream, norms and attention keep the model's dtype.

- ``bf16``: weights and inputs are rounded to bfloat16, sums are float32 inside the kernel.
- ``int8``: weights are int8 with a scale per row; inputs are int8 with a scale per token, after a multiplication by
  `smooth` (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438). Sums are exact 32-bit integers.
"""

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional

LARGEST = 127  # of a signed integer of 8 bits, symmetric about 0
ZERO_POINT = 128  # oneDNN's fast kernels take unsigned inputs


@functools.cache
@torch.inference_mode(False)
def _constants(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(ZERO_POINT + 0.5, device=device), torch.tensor(float(LARGEST), device=device)


def round_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round tokens to integers between -127 and 127, each with a scale of its own: few operations, as they are short.

    Args:
        x: ``(tokens, features)``, float32.

    Returns:
        The integers plus 128, uint8, and the largest magnitude of each token, ``(tokens, 1)``, which became 127.
    """
    offset, steps = _constants(x.device)
    largest = x.abs().amax(dim=-1, keepdim=True).clamp_min_(1e-30)
    return torch.addcmul(offset, x, steps / largest).to(torch.uint8), largest  # the conversion rounds down


class BFloat16Linear(nn.Linear):
    """A linear layer in bfloat16 that maps inputs of any dtype to outputs of the same dtype."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__(in_features, out_features, bias)
        self.weight.data = self.weight.data.bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``."""
        y = functional.linear(x.bfloat16(), self.weight.bfloat16()).to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and inputs.

    Attributes:
        weight: int8, ``(out_features, in_features)``.
        scale: float32, ``(out_features,)``; row i of the matrix is ``scale[i] * weight[i] * smooth``.
        smooth: float32, ``(in_features,)``, the factor on the inputs before they are rounded.
        bias: float, ``(out_features,)``, or None.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight: torch.Tensor
        self.smooth: torch.Tensor
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("smooth", torch.ones(in_features, dtype=torch.float32))
        self.scale = nn.Parameter(torch.ones(out_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def _apply(self, fn: Any, recurse: bool = True) -> "Int8Linear":
        """Keep the factors in float32 when the model's dtype changes: bfloat16 would round them as coarsely as int8."""
        smooth, scale = self.smooth, self.scale.data
        super()._apply(fn, recurse)
        if self.scale.dtype != torch.float32:
            self.smooth, self.scale.data = smooth.to(self.smooth.device), scale.to(self.scale.device)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``; rounding passes gradients on unchanged."""
        flat = x.reshape(-1, self.in_features).float() * self.smooth
        codes, largest = round_tokens(flat.detach())
        steps = codes.to(torch.int16).sub_(ZERO_POINT).to(torch.int8)
        if torch.is_grad_enabled() and (flat.requires_grad or self.scale.requires_grad):
            rounded = flat + (steps * (largest / LARGEST) - flat).detach()
            y = functional.linear(rounded, self.weight.float() * self.scale[:, None])
        else:
            y = torch._int_mm(steps, self.weight.t()).float().mul_(self.scale / LARGEST).mul_(largest)
        y = y if self.bias is None else y + self.bias.float()
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def matrix(self) -> torch.Tensor:
        """Return the float32 matrix that the weights stand for, ``(out_features, in_features)``."""
        return self.weight.float() * self.scale[:, None] * self.smooth

    def extra_repr(self) -> str:
        """Describe the shape."""
        return f"{self.in_features} -> {self.out_features}, int8"


CLASSES: dict[str, type[BFloat16Linear] | type[Int8Linear]] = {"bf16": BFloat16Linear, "int8": Int8Linear}


def with_precision(linear: nn.Linear, precision: str) -> nn.Module:
    """Return a layer of a linear layer's shape in another precision; its weights are not copied.

    A type of llama.cpp's, such as ``q8_0``, is no precision of torch's: the result is a plain layer.
    """
    sizes, has_bias, weight = (linear.in_features, linear.out_features), linear.bias is not None, linear.weight
    if precision not in CLASSES:
        return nn.Linear(*sizes, has_bias, device=weight.device, dtype=weight.dtype)
    return CLASSES[precision](*sizes, has_bias)


def set_precision(subblock: nn.Module, precision: str) -> None:
    """Replace a subblock's linear layers by layers of another precision, in place; their weights are not copied."""
    for name, linear in list(subblock.named_children()):
        if isinstance(linear, nn.Linear):
            setattr(subblock, name, with_precision(linear, precision))
