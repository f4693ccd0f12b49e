"""A narrower FFN: the channels that contribute most, by Channel Contribution (Puzzle, appendix A)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import FITTED_TOKENS, Block
from tangram.models.families import Shape

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


class NarrowFFN(Block):
    """`width-R`: the fraction R of the parent's intermediate channels."""

    @property
    def ratio(self) -> float:
        """Fraction of the parent's channels."""
        return float(self.variant.removeprefix("width-"))

    def overrides(self, shape: Shape) -> dict[str, Any]:
        """Return the intermediate size."""
        return {"intermediate_size": shape.width(self.ratio)}

    def initialise(self, parent: Any, shape: Shape, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Keep the channels of largest contribution, in the parent's order."""
        keep = channel_contribution(parent, calibration).topk(shape.width(self.ratio)).indices.sort().values
        weights = dict(parent.state_dict())
        for name, tensor in weights.items():
            if name.startswith(("gate_proj.", "up_proj.")):
                weights[name] = tensor[keep]
            elif name == "down_proj.weight":
                weights[name] = tensor[:, keep]
        return weights
