"""A narrower FFN: the channels that optimal brain surgeon keeps, or those of largest contribution (Puzzle)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import Block, register

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration
    from tangram.blocks.moments import Moments


def channel_contribution(parent: Any, moments: Moments) -> torch.Tensor:
    """Return each channel's mean contribution ``|X_i|·‖W_down[:, i]‖``, ``(intermediate,)`` (Puzzle, appendix A)."""
    return moments.inner_magnitude * parent.down_proj.weight.double().norm(dim=0)


@register
class NarrowFFN(Block):
    """`width-R`: the fraction R of the parent's intermediate channels."""

    family, kinds, form, sizes = "width", ("ffn",), "width-R", float
    label, hue, severity = "{size}", ("#a9d0ee", "#1d5ea8"), 2
    uses_moments = pruned = True

    @property
    def width(self) -> int:
        """Intermediate channels: the nearest multiple of 8, at least 8."""
        return max(8, round(self.shape.intermediate * self.size / 8) * 8)

    def overrides(self) -> dict[str, Any]:
        """Return the intermediate size."""
        return {"intermediate_size": self.width}

    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Select channels, in the parent's order; with `obs`, the output matrix is fitted anew."""
        from tangram.blocks.moments import damped
        from tangram.blocks.pruning import ROUNDS, refit, remaining_groups

        moments, down, weights = calibration.moments(parent), parent.down_proj, dict(parent.state_dict())
        if calibration.selection == "contribution":
            channels = channel_contribution(parent, moments).topk(self.width).indices.sort().values
            weights["down_proj.weight"] = down.weight[:, channels]
        else:
            moment = damped(moments.inner_moment, calibration.pruning_ridge)
            channels = remaining_groups(moment, down.weight, self.width, rounds=ROUNDS)
            fitted, bias = refit(moments, down.weight, down.bias, channels, calibration.pruning_ridge)
            weights |= {"down_proj.weight": fitted} | ({} if bias is None else {"down_proj.bias": bias})
        for name in [n for n in weights if n.startswith(("gate_proj.", "up_proj."))]:
            weights[name] = weights[name][channels]
        return weights

    def relative_size(self) -> float:
        """Return the share of channels that remain."""
        return self.width / self.shape.intermediate

    def too_large(self) -> str | None:
        """Refuse a ratio that rounds to the parent's width."""
        if self.width < self.shape.intermediate:
            return None
        return (
            f" has {self.width} channels, no fewer than the parent's {self.shape.intermediate}; choose a smaller ratio"
        )

    @classmethod
    def refusal(cls, size: int | float | None, heads: int, kv_heads: int) -> str | None:
        """Refuse the ratios 0 and 1."""
        if size == 1:
            return " is the parent's FFN, which is a choice in every layer; leave it out"
        return " has no channels; did you mean 'no-op'?" if size == 0 else None
