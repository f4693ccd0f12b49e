"""Grouped-query attention with fewer KV heads: groups of the parent's KV heads are mean-pooled.

Ainslie et al. 2023 (arXiv 2305.13245); Puzzle (arXiv 2411.19146), appendix A.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import LARGEST_COUNT, Block, register

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration


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
        """Average the K and V projections of each merged group of heads; copy all other weights.

        Biases are averaged, too, and the weights of a norm over all keys (OLMo 2), unlike those of a norm per head.
        """
        weights, per_group = dict(parent.state_dict()), self.shape.kv_heads // self.kv_heads
        rows = self.shape.kv_heads * self.shape.head_dim
        for name in [n for n in weights if n.startswith(("k_proj.", "v_proj.", "k_norm.")) and len(weights[n]) == rows]:
            heads = weights[name].unflatten(0, (self.kv_heads, per_group, self.shape.head_dim))
            weights[name] = heads.float().mean(dim=1).flatten(0, 1)
        return weights

    def relative_size(self) -> float:
        """Return the share of the weights that remain: those of queries and outputs do not change."""
        return (self.shape.heads + self.kv_heads) / (self.shape.heads + self.shape.kv_heads)

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
            f"valid: {', '.join(f'gqa-{k}' for k in valid) or 'none'}"
        )

    @classmethod
    def suggest(cls, number: float | None) -> str | None:
        """Return the name with the number rounded down."""
        return None if number is None else f"gqa-{max(1, int(number))}"
