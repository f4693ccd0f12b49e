"""One linear map instead of a subblock, fitted to the parent's activations by ridge regression.

The prior is the training-free map of Puzzle, appendix A: ``W_o W_v`` for attention, ``W_down W_up`` for an FFN.
Ridge regression on activations follows ReplaceMe (arXiv 2505.02819).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import CONFIG_NAME, KINDS, Block, register
from tangram.models.families import Shape

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration
    from tangram.blocks.moments import Moments


def value_output_map(parent: Any, shape: Shape) -> torch.Tensor:
    """Return ``W_o · repeat_groups(W_v)``, ``(hidden, hidden)`` float32: attention when each token sees only itself."""
    values = parent.v_proj.weight.detach().float().unflatten(0, (shape.kv_heads, shape.head_dim))
    repeated = values.repeat_interleave(shape.heads // shape.kv_heads, dim=0).flatten(0, 1)
    return parent.o_proj.weight.detach().float() @ repeated


@register
class LinearMap(Block):
    """`linear`: a square matrix and a bias."""

    family, kinds, form = "linear", KINDS, "linear"
    label, hue, severity = "lin", ("#e69f00", "#e69f00"), 4
    formats = ("gguf", "decilm")  # transformers' own schema has no linear map
    part = "linear"
    uses_moments = True
    trainable = False  # the ridge solution is already the least-squares optimum of the local problem

    def overrides(self) -> dict[str, Any]:
        """Return the entry from which `models/modeling_tangram.py` builds a linear map."""
        return {"linear": [CONFIG_NAME[self.kind]]}

    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Fit the map to the parent's outputs."""
        from tangram.blocks.calibration import ridge_regression

        moments = calibration.moments(parent)
        name, prior = self.prior(parent, calibration, moments)
        weight, bias = ridge_regression(moments, calibration.ridge, prior)
        return {f"{name}.weight": weight, f"{name}.bias": bias}

    def prior(self, parent: Any, calibration: Calibration, moments: Moments) -> tuple[str, torch.Tensor]:
        """Return the module's name and the training-free map, ``(hidden, hidden)``.

        The map stands for a norm after the subblock, too: for the best factor of each channel.
        """
        if self.kind == "attention":
            name, prior = "linear_attn", value_output_map(parent, self.shape)
        else:
            name = "linear_mlp"
            prior = parent.down_proj.weight.detach().float() @ parent.up_proj.weight.detach().float()
        if calibration.norm_after:
            wide = prior.double()
            crossed, squares = (wide * moments.cross_moment.t()).sum(1), ((wide @ moments.input_moment) * wide).sum(1)
            prior = (crossed / squares.clamp_min(1e-30)).float()[:, None] * prior
        return name, prior

    def relative_size(self) -> float:
        """Return the weights of the square matrix relative to the subblock's."""
        return self.shape.hidden**2 / self.shape.parameters(self.kind)
