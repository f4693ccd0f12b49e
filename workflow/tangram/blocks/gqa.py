"""Grouped-query attention with fewer KV heads, which are rotated into agreement and then mean-pooled by group.

Mean pooling: Ainslie et al. 2023 (arXiv 2305.13245); Puzzle (arXiv 2411.19146), appendix A. Rotations: `alignment`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tangram.blocks.base import FITTED_TOKENS, LARGEST_COUNT, Block, register

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration

REFIT_RIDGE = 0.1  # at least, relative to the mean squared input: thousands of tokens determine hundreds of columns


def pooled(weights: Mapping[str, torch.Tensor], kv_heads: int, head_dim: int) -> dict[str, torch.Tensor]:
    """Return an attention's weights with the means of the K and V projections (and biases) of each group of heads.

    A norm over all keys (OLMo 2) has weights per head, which are averaged, too.
    """
    merged, rows = dict(weights), len(weights["k_proj.weight"])
    for name in [n for n in weights if n.startswith(("k_proj.", "v_proj.", "k_norm.")) and len(weights[n]) == rows]:
        heads = weights[name].unflatten(0, (kv_heads, -1, head_dim))
        merged[name] = (heads if heads.dtype.itemsize > 4 else heads.float()).mean(dim=1).flatten(0, 1)
    return merged


def head_outputs(parent: Any, weights: Mapping[str, torch.Tensor], calibration: Calibration) -> torch.Tensor:
    """Return the inputs of `o_proj` of an attention with fewer KV heads, ``(tokens, heads · head size)``, float32.

    Args:
        parent: the parent's attention, with the same query heads; it is not changed.
        weights: of the attention, by name.
        calibration: inputs, with the arguments of the decoder layer in `context`.
    """
    import torch
    from torch import nn

    attention = copy.deepcopy(parent)
    for name in ("q_proj", "k_proj", "v_proj", "k_norm"):
        projection: Any = getattr(attention, name, None)
        for part in [part for part in ("weight", "bias") if f"{name}.{part}" in weights]:
            tensor = weights[f"{name}.{part}"].to(projection.weight)
            setattr(projection, part, nn.Parameter(tensor, requires_grad=False))
    attention.num_key_value_groups = len(weights["q_proj.weight"]) // len(weights["k_proj.weight"])
    attention.o_proj = nn.Identity()
    context = calibration.context or {}
    length = context["position_ids"].shape[-1]
    sequences = calibration.inputs.unflatten(0, (-1, length))
    batches = sequences.split(max(1, FITTED_TOKENS // length))
    outputs = [attention(hidden_states=batch, **context)[0] for batch in batches]
    return torch.cat([part.to(torch.promote_types(part.dtype, torch.float32)) for part in outputs]).flatten(0, 1)


@register
class GroupedQuery(Block):
    """`gqa-K`: K key-value heads, a divisor of the parent's number."""

    family, kinds, form, sizes = "gqa", ("attention",), "gqa-K", int
    label, hue, severity = "g{size}", ("#c9a6d8", "#7b48a3"), 1

    @property
    def kv_heads(self) -> int:
        """Key-value heads of this block."""
        return int(self.size)

    def overrides(self) -> dict[str, Any]:
        """Return the number of KV heads."""
        return {"num_key_value_heads": self.kv_heads}

    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Align and merge the KV heads of each group, and refit `o_proj` to the outputs of the merged heads."""
        from tangram.blocks.alignment import aligned
        from tangram.blocks.calibration import regression_through_zero
        from tangram.blocks.moments import moments_between

        rotated = aligned(parent, calibration.inputs, calibration.weights, self.kv_heads)
        weights = pooled(rotated, self.kv_heads, self.shape.head_dim)
        if calibration.context is not None:
            outputs = calibration.outputs if parent.o_proj.bias is None else calibration.outputs - parent.o_proj.bias
            moments = moments_between(head_outputs(parent, weights, calibration), outputs, calibration.weights)
            ridge = max(calibration.ridge, REFIT_RIDGE)
            weights["o_proj.weight"] = regression_through_zero(moments, ridge, weights["o_proj.weight"])
        return {name: tensor.float() for name, tensor in weights.items()}

    def relative_size(self) -> float:
        """Return the share of the weights that remain: those of queries and outputs do not change."""
        return (self.shape.heads + self.kv_heads) / (self.shape.heads + self.shape.kv_heads)

    def operations_to_fit(self) -> float:
        """Return the multiply-adds of the moments of heads, and of one more pass through the attention."""
        queries, keys = self.shape.heads * self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim
        return float(queries**2 + keys**2 + self.shape.parameters(self.kind))

    @classmethod
    def refusal(cls, size: int | float | None, heads: int, kv_heads: int) -> str | None:
        """Refuse a number that does not divide the parent's number of KV heads, or equals it."""
        if not isinstance(size, int) or size > LARGEST_COUNT:
            return None
        if 1 <= size < kv_heads and kv_heads % size == 0:
            return None
        valid = [k for k in range(1, kv_heads) if kv_heads % k == 0]
        return (
            f": {size} KV heads do not divide the parent's {kv_heads}; "
            f"valid: {', '.join(f'{cls.family}-{k}' for k in valid) or 'none'}"
        )

    @classmethod
    def suggest(cls, number: float | None) -> str | None:
        """Return the name with the number rounded down."""
        return None if number is None else f"{cls.family}-{max(1, int(number))}"
