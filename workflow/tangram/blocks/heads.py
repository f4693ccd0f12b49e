"""Attention with fewer query heads, whose output matrix is fitted anew; the other heads do not change.

Query heads leave in equal numbers from every key-value head that remains, as transformers and other engines require.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import LARGEST_COUNT, Block, register

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration
    from tangram.blocks.moments import Moments


def kv_heads_of(heads: int, parent_heads: int, parent_kv_heads: int) -> int | None:
    """Return the fewest key-value heads among which a number of query heads can be divided; None if there is none.

    A key-value head has at most as many query heads as in the parent.
    """
    per_group = parent_heads // parent_kv_heads
    counts = [k for k in range(1, parent_kv_heads + 1) if heads % k == 0 and heads // k <= per_group]
    return counts[0] if counts else None


@register
class FewerHeads(Block):
    """`heads-K`: K query heads, with the fewest key-value heads that can serve them."""

    family, kinds, form, sizes = "heads", ("attention",), "heads-K", int
    label, hue, severity = "h{size}", ("#e3b7c8", "#a03a63"), 2
    formats = ("gguf", "hf")  # DeciLM has the parent's query heads in every layer
    uses_moments = pruned = True

    @property
    def heads(self) -> int:
        """Query heads of this block."""
        return int(self.size)

    @property
    def kv_heads(self) -> int:
        """Key-value heads of this block."""
        count = kv_heads_of(self.heads, self.shape.heads, self.shape.kv_heads)
        if count is None:
            raise ValueError(f"{self.variant} is not admissible")
        return count

    def overrides(self) -> dict[str, Any]:
        """Return the numbers of heads; their width is a default that would depend on the number."""
        return {
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.shape.head_dim,
        }

    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Copy the heads that remain; fit the output matrix to the parent's outputs."""
        from tangram.blocks.pruning import refit

        shape, moments, weights = self.shape, calibration.moments(parent), dict(parent.state_dict())
        heads = self.remaining(parent, moments, calibration.pruning_ridge)
        groups = (heads // (shape.heads // shape.kv_heads)).unique()
        for name, tensor in weights.items():
            if name.startswith(("q_proj.", "k_proj.", "v_proj.")):
                chosen = heads if name.startswith("q_proj.") else groups
                weights[name] = tensor.unflatten(0, (-1, shape.head_dim))[chosen].flatten(0, 1)
        for name, matrix, chosen in (("q_norm", parent.q_proj, heads), ("k_norm", parent.k_proj, groups)):
            norm = weights.get(f"{name}.weight")
            if norm is not None and len(norm) == matrix.out_features > shape.head_dim:  # of all heads, as in OLMo 2
                weights[f"{name}.weight"] = _norm_of(norm, matrix, moments, _columns(chosen, shape.head_dim))
        columns = _columns(heads, shape.head_dim)
        output = parent.o_proj
        fitted, bias = refit(moments, output.weight, output.bias, columns, calibration.pruning_ridge)
        return {**weights, "o_proj.weight": fitted, **({} if bias is None else {"o_proj.bias": bias})}

    def remaining(self, parent: Any, moments: Moments, ridge: float) -> torch.Tensor:
        """Return the query heads that remain, in order: first whole groups leave, then heads of each other group."""
        from tangram.blocks.moments import damped
        from tangram.blocks.pruning import refit, remaining_groups, removal_order

        shape, weight = self.shape, parent.o_proj.weight
        moment = damped(moments.inner_moment, ridge)
        per_group = shape.heads // shape.kv_heads
        groups = remaining_groups(moment, weight, self.kv_heads, per_group * shape.head_dim)
        heads = _columns(groups, per_group)
        if self.heads == len(heads):
            return heads
        columns = _columns(heads, shape.head_dim)
        compensated, _ = refit(moments, weight, None, columns, ridge)
        order = heads[removal_order(moment[columns][:, columns], compensated, shape.head_dim)]
        last = [order[order // per_group == group][-(self.heads // self.kv_heads) :] for group in groups]
        return order.new_tensor(sorted(int(head) for part in last for head in part))

    def relative_size(self) -> float:
        """Return the share of the weights that remain."""
        return (self.heads + self.kv_heads) / (self.shape.heads + self.shape.kv_heads)

    @classmethod
    def refusal(cls, size: int | float | None, heads: int, kv_heads: int) -> str | None:
        """Refuse a number of heads that is the parent's, or that key-value heads cannot share equally."""
        if not isinstance(size, int) or size > LARGEST_COUNT:
            return None
        if 1 <= size < heads and kv_heads_of(size, heads, kv_heads) is not None:
            return None
        valid = [f"heads-{k}" for k in range(1, heads) if kv_heads_of(k, heads, kv_heads) is not None]
        return (
            f": {size} query heads are not fewer than the parent's {heads} with equally many for each key-value head, "
            f"at most {heads // kv_heads}; valid: {', '.join(valid) or 'none'}"
        )

    @classmethod
    def suggest(cls, number: float | None) -> str | None:
        """Return the name with the number rounded down."""
        return None if number is None else f"heads-{max(1, int(number))}"


def _norm_of(norm: torch.Tensor, matrix: Any, moments: Moments, remaining: torch.Tensor) -> torch.Tensor:
    """Return the weights of a norm over the rows that remain of a matrix, scaled as the norm over all rows scales them.

    Args:
        norm: weights of the norm over all rows, ``(rows,)``.
        matrix: the projection of queries or keys.
        moments: of its inputs.
        remaining: indices of the rows.
    """
    rows = matrix.weight.double()
    squares = ((rows @ moments.input_moment) * rows).sum(1)
    if matrix.bias is not None:
        squares = squares + matrix.bias.double() * (2 * rows @ moments.input_mean + matrix.bias.double())
    return norm[remaining] * (squares[remaining].mean() / squares.mean()).sqrt().to(norm)


def _columns(groups: torch.Tensor, size: int) -> torch.Tensor:
    """Return the indices of the members of some groups of adjacent ones, in the order of the groups."""
    import torch

    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()
