"""Prepare a model for fast inference: weights in the layout of the kernels, and one product for equal inputs.

This file is copied into every child checkpoint that has the model's code, so it imports nothing but torch and
transformers.

`pack` replaces linear layers, norms and attention of a stock or heterogeneous decoder. On CPUs, matrices are reordered
once for oneDNN's kernels, instead of at every call. Layers with the same input (q/k/v, gate/up) become one product, and
the smoothing factors of int8 layers become part of the layer before. Results equal those before up to rounding. A
packed model can neither be trained nor saved: load the checkpoint again for that.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP
from transformers.models.granite.modeling_granite import GraniteAttention, GraniteMLP, GraniteRMSNorm
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralMLP, MistralRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2MLP, Olmo2RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm
from transformers.models.smollm3.modeling_smollm3 import SmolLM3Attention, SmolLM3MLP, SmolLM3RMSNorm

from .layouts import layout_of
from .packed_attention import PackedAttention, Rotation, neighbors
from .quantized import ZERO_POINT, BFloat16Linear, Fp8Linear, Int8Linear, ScaledLinear, round_tokens

SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# Attention, FFNs and norms that the classes of this file and of `packed_attention` compute; others stay as they are.
ATTENTIONS = (LlamaAttention, MistralAttention, Qwen2Attention, GraniteAttention, SmolLM3Attention)
FFNS = (LlamaMLP, MistralMLP, Qwen2MLP, Qwen3MLP, GraniteMLP, Olmo2MLP, SmolLM3MLP, Gemma2MLP, Gemma3MLP)
NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm, GraniteRMSNorm, Olmo2RMSNorm, SmolLM3RMSNorm)
PACKABLE = (nn.Linear, BFloat16Linear, Int8Linear, Fp8Linear)

Kernel: TypeAlias = Callable[[torch.Tensor], torch.Tensor]  # (tokens, in) to (tokens, out), without the bias


def _float_kernel(weight: torch.Tensor) -> Kernel:
    """Return the product with a float matrix ``(out, in)``, for inputs of its dtype."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return lambda x: functional.linear(x, weight)
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return lambda x: functional.linear(x, weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return lambda x: torch.ops.mkldnn._linear_pointwise.default(x, packed, None, "none", [], "")


@functools.cache
def _onednn_is_exact() -> bool:
    """Return whether oneDNN multiplies int8 exactly here: without VNNI, sums of two products may saturate."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops, "onednn"):
        return False
    inputs, weight = torch.full((4, 64), 255, dtype=torch.uint8), torch.full((32, 64), 127, dtype=torch.int8)
    try:
        sums = _onednn_int8(weight, torch.ones(32))(inputs)
    except (AttributeError, RuntimeError):
        return False
    return bool((sums == (255 - ZERO_POINT) * 127 * 64).all())


def _onednn_int8(weight: torch.Tensor, scale: torch.Tensor) -> Kernel:
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    return lambda x: torch.ops.onednn.qlinear_pointwise.default(
        x, 1.0, ZERO_POINT, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def _scaled_kernel(
    layer: type[ScaledLinear], weight: torch.Tensor, scale: torch.Tensor, smooth: torch.Tensor
) -> Kernel:
    """Return the product of a class of layers for weight, scale and smoothing factors."""
    scaled = not bool((smooth == 1).all())
    scale = scale / layer.largest
    exact = layer is Int8Linear and weight.device.type == "cpu" and _onednn_is_exact()
    product = _onednn_int8(weight, scale) if exact else None

    def kernel(x: torch.Tensor) -> torch.Tensor:
        x = x * smooth if scaled else x
        if product is not None:
            codes, largest = round_tokens(x)
            return product(codes).mul_(largest)
        rounded, largest = layer.rounded_tokens(x)
        return layer.product(rounded, weight).mul_(scale).mul_(largest)

    return kernel


class PackedLinear(nn.Module):
    """Linear layers of equal class and equal input as one product; without parameters.

    Args:
        layers: of `PACKABLE` classes, all of one class.
        order: the order of the rows of all layers together; theirs by default.
    """

    def __init__(self, layers: Sequence[Any], order: torch.Tensor | None = None):
        super().__init__()
        self.in_features, self.sizes = layers[0].in_features, [layer.out_features for layer in layers]
        self.out_features = sum(self.sizes)

        def rows(name: str) -> torch.Tensor:
            joined = torch.cat([getattr(layer, name).detach() for layer in layers])
            return joined if order is None else joined[order]

        weight = rows("weight")
        self._kernel: Kernel
        self._input_dtype: torch.dtype = weight.dtype
        if isinstance(layers[0], ScaledLinear):
            self._input_dtype = torch.float32
            self._kernel = _scaled_kernel(type(layers[0]), weight, rows("scale").float(), layers[0].smooth.float())
        elif isinstance(layers[0], BFloat16Linear):
            self._input_dtype = torch.bfloat16
            self._kernel = _float_kernel(weight.bfloat16())
        else:
            self._kernel = _float_kernel(weight)
        self._bias = None if layers[0].bias is None else rows("bias")
        self._shared: tuple[torch.Tensor, Sequence[torch.Tensor]] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``, in the dtype of the input."""
        flat = x.reshape(-1, self.in_features)
        y = self._kernel(flat.to(self._input_dtype)).to(x.dtype)
        y = y if self._bias is None else y + self._bias
        return y.view(*x.shape[:-1], self.out_features)

    def part(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """Return one layer's output: the first call for an input computes all, the last part's call forgets them."""
        if self._shared is None or self._shared[0] is not x:
            self._shared = x, self(x).split(self.sizes, dim=-1)
        output = self._shared[1][index]
        if index == len(self.sizes) - 1:
            self._shared = None
        return output

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(f"{prefix[:-1]} is packed for inference; load the checkpoint again to save or train it")

    def extra_repr(self) -> str:
        """Describe the shape."""
        return f"{self.in_features} -> {' + '.join(map(str, self.sizes))}, packed"


class Part(nn.Module):
    """One of several layers that a `PackedLinear` computes together."""

    def __init__(self, packed: PackedLinear, index: int):
        super().__init__()
        self.in_features, self.out_features = packed.in_features, packed.sizes[index]
        self.packed, self.index = packed, index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``."""
        return self.packed.part(x, self.index)


class PackedFFN(nn.Module):
    """A gated FFN with one product for its first two matrices.

    Args:
        gate_up: maps the input to the gate's inputs and the factors that are gated, one after the other.
        down: maps their product to the residual stream.
        activation: of the gate.
    """

    def __init__(self, gate_up: PackedLinear, down: nn.Module, activation: nn.Module):
        super().__init__()
        self.gate_up_proj, self.down_proj, self.act_fn = gate_up, down, activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, tokens, hidden)`` to the same shape."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        y: torch.Tensor = self.down_proj(self.act_fn(gate) * up)
        return y


class PackedNorm(nn.Module):
    """RMS norm in half of the operations of torch's on CPUs: it scales by ``(‖x‖² + n ε)^-½``, and weights by √n.

    Args:
        weight: ``(n,)``, float32.
        epsilon: added to the mean of the squares.
    """

    def __init__(self, weight: torch.Tensor, epsilon: float):
        super().__init__()
        self.register_buffer("_weight", weight.detach() * math.sqrt(len(weight)), persistent=False)
        self.register_buffer("_epsilon", torch.tensor(len(weight) * epsilon, device=weight.device), persistent=False)
        self._weight: torch.Tensor
        self._epsilon: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., n)`` to the same shape."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.addcmul(self._epsilon, length, length).rsqrt_().mul(x).mul_(self._weight)


def _joinable(layers: Sequence[Any]) -> bool:
    """Return whether layers can be one product: of one class, all or none with a bias, and equally smoothed."""
    first = layers[0]
    if type(first) not in PACKABLE or any(type(layer) is not type(first) for layer in layers):
        return False
    if len({layer.bias is None for layer in layers}) > 1:
        return False
    return not isinstance(first, ScaledLinear) or all(torch.equal(layer.smooth, first.smooth) for layer in layers)


@torch.no_grad()
def pack(model: Any) -> Any:
    """Replace a decoder's linear layers, norms and attention by fast ones, in place, and return the model.

    Args:
        model: a Llama-like causal language model of transformers, or a child, with its weights in memory.
    """
    rotation = Rotation()
    for layer in model.model.layers:
        for place in layout_of(layer):
            if (subblock := getattr(layer, place.module)) is not None:
                _absorb_smoothing(getattr(layer, place.before) if place.before else None, subblock)
                for norm in place.norms:
                    setattr(layer, norm, _packed_norm(getattr(layer, norm)))
                setattr(layer, place.module, _packed_subblock(subblock, rotation))
    model.model.norm = _packed_norm(model.model.norm)
    if _joinable([model.lm_head]):
        model.lm_head = PackedLinear([model.lm_head])
    return model


def _absorb_smoothing(norm: Any, subblock: Any) -> None:
    """Move the smoothing factors of layers of 8 bits into the norm, or the up projection, that gives their input."""
    for names in (*SAME_INPUT, ("linear_attn",), ("linear_mlp",)) if type(norm) in NORMS else ():
        layers: list[Any] = [getattr(subblock, name, None) for name in names]
        if all(isinstance(layer, ScaledLinear) for layer in layers) and _joinable(layers):
            norm.weight.mul_(layers[0].smooth)
            for layer in layers:
                layer.smooth.fill_(1)
    up, down = getattr(subblock, "up_proj", None), getattr(subblock, "down_proj", None)
    if isinstance(up, ScaledLinear) and isinstance(down, ScaledLinear) and up.bias is None:
        up.scale.mul_(down.smooth)
        down.smooth.fill_(1)


def _packed_norm(norm: Any) -> nn.Module:
    """Return a faster RMS norm; below float32 it rounds elsewhere, so the norm stays."""
    if type(norm) not in NORMS or norm.weight.dtype != torch.float32:
        return norm
    if norm.weight.device.type == "cpu":
        return PackedNorm(norm.weight, norm.variance_epsilon)
    packed = nn.RMSNorm(len(norm.weight), norm.variance_epsilon)
    packed.weight = norm.weight
    return packed


def _packed_subblock(subblock: nn.Module, rotation: Rotation) -> nn.Module:
    fast = _packed_attention(subblock, rotation) or _packed_ffn(subblock)
    if fast is not None:
        return fast
    for names in SAME_INPUT:
        layers = [getattr(subblock, name, None) for name in names]
        if all(layer is not None for layer in layers) and _joinable(layers):
            packed = PackedLinear(layers)
            for index, name in enumerate(names):
                setattr(subblock, name, Part(packed, index))
    for name, layer in list(subblock.named_children()):
        if _joinable([layer]):
            setattr(subblock, name, PackedLinear([layer]))
        elif isinstance(layer, nn.Sequential):  # the factors of an operator
            _packed_subblock(layer, rotation)
    return subblock


def _packed_ffn(subblock: Any) -> nn.Module | None:
    """Return a fast FFN; None for classes that may compute something else, or for structured projections."""
    if type(subblock) not in FFNS:
        return None
    layers: list[Any] = [subblock.gate_proj, subblock.up_proj]
    if not _joinable(layers) or not _joinable([subblock.down_proj]):
        return None
    return PackedFFN(PackedLinear(layers), PackedLinear([subblock.down_proj]), subblock.act_fn)


def _packed_attention(subblock: Any, rotation: Rotation) -> nn.Module | None:
    """Return fast attention; None for classes that may compute something else, or for structured projections."""
    if type(subblock) not in ATTENTIONS or not getattr(subblock, "use_rope", True):
        return None
    layers: list[Any] = [getattr(subblock, name) for name in (*SAME_INPUT[0], "o_proj")]
    if not _joinable(layers[:3]) or not _joinable(layers[3:]):
        return None
    sizes, head_dim = [layer.out_features for layer in layers[:3]], subblock.head_dim
    turned = neighbors((sizes[0] + sizes[1]) // head_dim, head_dim)
    order = torch.cat([turned, torch.arange(len(turned), sum(sizes))]).to(layers[0].weight.device)
    return PackedAttention(subblock, PackedLinear(layers[:3], order), PackedLinear(layers[3:]), rotation)
