"""Linear layers with matrices in a lower precision than the model's dtype, in plain torch.

This file is copied into every child checkpoint that has the model's code, so it imports no package but torch. The
residual stream, norms and attention keep the model's dtype.

- ``bf16``: weights and inputs are rounded to bfloat16, sums are float32 inside the kernel.
- ``int8``: weights are int8 with a scale per row; inputs are int8 with a scale per token, after a multiplication by
  `smooth` (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438). Sums are exact 32-bit integers.
- ``fp8``: as int8, with float8 numbers of 4 exponent and 3 mantissa bits (e4m3fn, Micikevicius et al. 2022, arXiv
  2209.05433), and sums in float32. GPUs of compute capability 8.9 and later have kernels.
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


class ScaledLinear(nn.Module):
    """A linear layer whose weights and inputs have 8 bits, with a scale per row and per token.

    Attributes:
        weight: of the class's dtype, ``(out_features, in_features)``.
        scale: float32, ``(out_features,)``; row i of the matrix is ``scale[i] * weight[i] * smooth``.
        smooth: float32, ``(in_features,)``, the factor on the inputs before they are rounded.
        bias: float, ``(out_features,)``, or None.
    """

    dtype: torch.dtype  # of weights and rounded inputs
    largest: float  # value of the dtype, which the largest entry of a row or a token becomes

    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight: torch.Tensor
        self.smooth: torch.Tensor
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=self.dtype))
        self.register_buffer("smooth", torch.ones(in_features, dtype=torch.float32))
        self.scale = nn.Parameter(torch.ones(out_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @classmethod
    def rounded(cls, x: torch.Tensor) -> torch.Tensor:
        """Round entries of a float tensor to the nearest values of the class's dtype."""
        raise NotImplementedError

    @classmethod
    def rounded_tokens(cls, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens ``(tokens, features)`` rounded, and the largest magnitude of each, which became `largest`."""
        largest = x.abs().amax(dim=-1, keepdim=True).clamp_min_(1e-30)
        return cls.rounded(x * (cls.largest / largest)), largest

    @staticmethod
    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return ``x weightᵀ``, ``(tokens, out)`` float32, of rounded inputs ``(tokens, in)`` and a layer's weights."""
        raise NotImplementedError

    def _apply(self, fn: Any, recurse: bool = True) -> "ScaledLinear":
        """Keep all types when the model's dtype changes: bfloat16 would round the factors as coarsely as int8."""
        weight, smooth, scale = self.weight, self.smooth, self.scale.data
        super()._apply(fn, recurse)
        if self.scale.dtype != torch.float32 or self.weight.dtype != self.dtype:
            device = self.scale.device
            self.weight, self.smooth, self.scale.data = weight.to(device), smooth.to(device), scale.to(device)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``; rounding passes gradients on unchanged."""
        flat = x.reshape(-1, self.in_features).float() * self.smooth
        rounded, largest = self.rounded_tokens(flat.detach())
        if torch.is_grad_enabled() and (flat.requires_grad or self.scale.requires_grad):
            flat = flat + (rounded.float() * (largest / self.largest) - flat).detach()
            y = functional.linear(flat, self.weight.float() * self.scale[:, None])
        else:
            y = self.product(rounded, self.weight).mul_(self.scale / self.largest).mul_(largest)
        y = y if self.bias is None else y + self.bias.float()
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def matrix(self) -> torch.Tensor:
        """Return the float32 matrix that the weights stand for, ``(out_features, in_features)``."""
        return self.weight.float() * self.scale[:, None] * self.smooth

    def extra_repr(self) -> str:
        """Describe the shape."""
        return f"{self.in_features} -> {self.out_features}, {str(self.dtype).removeprefix('torch.')}"


class Int8Linear(ScaledLinear):
    """A linear layer with int8 weights and inputs, and exact sums."""

    dtype, largest = torch.int8, LARGEST

    @classmethod
    def rounded(cls, x: torch.Tensor) -> torch.Tensor:
        """Round to integers from -127 to 127."""
        return x.round().clamp_(-LARGEST, LARGEST).to(torch.int8)

    @classmethod
    def rounded_tokens(cls, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens as integers, and the largest magnitude of each, as packed kernels round them."""
        codes, largest = round_tokens(x)
        return codes.to(torch.int16).sub_(ZERO_POINT).to(torch.int8), largest

    @staticmethod
    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Multiply integers; a CUDA kernel takes more than 16 tokens, and widths and rows in multiples of 8."""
        if not x.is_cuda:
            return torch._int_mm(x, weight.t()).float()
        sums = torch._int_mm(_padded(x, 24, 8), _padded(weight, 8, 8).t())
        return sums[: len(x), : len(weight)].float()


class Fp8Linear(ScaledLinear):
    """A linear layer with float8 (e4m3fn) weights and inputs, and float32 sums: in tensor cores, or emulated."""

    dtype, largest = torch.float8_e4m3fn, torch.finfo(torch.float8_e4m3fn).max

    @classmethod
    def rounded(cls, x: torch.Tensor) -> torch.Tensor:
        """Round to float8, at most ±448."""
        return x.clamp(-cls.largest, cls.largest).to(cls.dtype)

    @staticmethod
    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Multiply; a CUDA kernel takes widths and rows in multiples of 16. Scales per row would round its sums."""
        if not x.is_cuda:
            return functional.linear(x.float(), weight.float())
        one = torch.ones((), device=x.device)
        padded, columns = _padded(x, 16, 16), _padded(weight, 16, 16).t()
        sums = torch._scaled_mm(padded, columns, one, one, out_dtype=torch.float32)
        return sums[: len(x), : len(weight)].contiguous()


def _padded(matrix: torch.Tensor, rows: int, multiple: int) -> torch.Tensor:
    """Append zeros to an 8-bit matrix up to a number of rows, and to multiples in both directions."""
    height, width = max(rows, len(matrix) + -len(matrix) % multiple), matrix.shape[1] + -matrix.shape[1] % multiple
    if (height, width) == matrix.shape:
        return matrix
    bits = functional.pad(matrix.view(torch.uint8), (0, width - matrix.shape[1], 0, height - len(matrix)))
    return bits.view(matrix.dtype)


SCALED: dict[str, type[ScaledLinear]] = {"int8": Int8Linear, "fp8": Fp8Linear}
CLASSES: dict[str, type[BFloat16Linear] | type[ScaledLinear]] = {"bf16": BFloat16Linear, **SCALED}


def with_precision(linear: nn.Linear, precision: str) -> nn.Module:
    """Return a layer of a linear layer's shape in another precision; its weights are not copied.

    A type of llama.cpp's, such as ``q8_0``, is no precision of torch's: the result is a plain layer.
    """
    sizes, has_bias, weight = (linear.in_features, linear.out_features), linear.bias is not None, linear.weight
    if precision not in CLASSES:
        return nn.Linear(*sizes, has_bias, device=weight.device, dtype=weight.dtype)
    return CLASSES[precision](*sizes, has_bias)


def set_precision(subblock: nn.Module, precision: str) -> None:
    """Replace a subblock's linear layers by layers of another precision, in place; their weights are not copied.

    Linear layers in sequence, such as the factors of an operator, are replaced one by one.
    """
    for name, layer in list(subblock.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(subblock, name, with_precision(layer, precision))
        elif isinstance(layer, nn.Sequential):
            set_precision(layer, precision)
