"""One linear map instead of a subblock, fitted to the parent's activations by ridge regression.

Ridge regression on activations follows ReplaceMe (arXiv 2505.02819). The ridge draws the map to zero: drawn to the
training-free maps of Puzzle, appendix A, ``W_o W_v`` and ``W_down W_up``, it is worse (docs/evidence/quality.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import CONFIG_NAME, KINDS, Block, register

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration


def fit_ridge(calibration: Calibration, columns: int) -> float:
    """Return the ridge strength of a map with that many columns: at least columns per token.

    Such a ridge lowers the KL of maps from few tokens by 7 to 29 % (docs/evidence/quality.md), and vanishes with their
    number.
    """
    tokens = int(calibration.weights.count_nonzero())
    return max(calibration.ridge, columns / max(tokens, 1))


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
        """Fit the map to the parent's outputs; with an infinite ridge it would be the piece `constant`."""
        from tangram.blocks.calibration import ridge_regression

        moments = calibration.moments(parent)
        weight, bias = ridge_regression(moments, fit_ridge(calibration, self.shape.hidden))
        return {f"{self.module}.weight": weight, f"{self.module}.bias": bias}

    @property
    def module(self) -> str:
        """The name of the map's module in the layer."""
        return "linear_attn" if self.kind == "attention" else "linear_mlp"

    def relative_size(self) -> float:
        """Return the weights of the square matrix relative to the subblock's."""
        return self.shape.hidden**2 / self.shape.parameters(self.kind)
