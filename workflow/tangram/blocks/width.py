"""A narrower FFN with the channels of largest Channel Contribution (Puzzle, appendix A)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import FITTED_TOKENS, Block, register

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration


def channel_contribution(parent: Any, calibration: Calibration) -> torch.Tensor:
    """Return each channel's mean contribution ``|X_i|·‖W_down[:, i]‖``, ``(intermediate,)``."""
    weights = calibration.weights[:, None] / calibration.weights.sum()
    total = weights.new_zeros(parent.down_proj.in_features)
    for x, weight in zip(calibration.inputs.split(FITTED_TOKENS), weights.split(FITTED_TOKENS), strict=True):
        hidden = parent.act_fn(parent.gate_proj(x)) * parent.up_proj(x)
        total += (weight * hidden.abs()).sum(0)
    return total * parent.down_proj.weight.float().norm(dim=0)


@register
class NarrowFFN(Block):
    """`width-R`: the fraction R of the parent's intermediate channels."""

    family, kinds, form, sizes = "width", ("ffn",), "width-R", float
    label, hue, severity = "{size}", ("#a9d0ee", "#1d5ea8"), 2

    @property
    def width(self) -> int:
        """Intermediate channels: the nearest multiple of 8, at least 8."""
        return max(8, round(self.shape.intermediate * self.size / 8) * 8)

    def overrides(self) -> dict[str, Any]:
        """Return the intermediate size."""
        return {"intermediate_size": self.width}

    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Select the channels of largest contribution, in the parent's order."""
        channels = channel_contribution(parent, calibration).topk(self.width).indices.sort().values
        weights = dict(parent.state_dict())
        for name, tensor in weights.items():
            if name.startswith(("gate_proj.", "up_proj.")):
                weights[name] = tensor[channels]
            elif name == "down_proj.weight":
                weights[name] = tensor[:, channels]
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
