"""One linear map without bias instead of a subblock, for formats of other engines that have no place for the bias.

In llama.cpp an FFN joins the layer of such a map; a map with bias needs a stub of its own (`costs/llama_layers.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import CONFIG_NAME, register
from tangram.blocks.linear import LinearMap, fit_ridge

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration


@register
class UnbiasedLinearMap(LinearMap):
    """`linear-unbiased`: a square matrix."""

    family, form, part = "linear-unbiased", "linear-unbiased", "unbiased"
    label, hue = "lin0", ("#f2c14e", "#f2c14e")

    def overrides(self) -> dict[str, Any]:
        """Return the entries of a linear map, and of its missing bias."""
        name = CONFIG_NAME[self.kind]
        return {"linear": [name, f"{name}=unbiased"]}

    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Fit the map to the parent's outputs; as it has no bias, neither inputs nor outputs are centered."""
        import torch

        from tangram.blocks.calibration import regression_through_zero

        moments = calibration.moments(parent)
        ridge, nothing = fit_ridge(calibration, self.shape.hidden), torch.zeros_like(moments.cross_moment)
        return {f"{self.module}.weight": regression_through_zero(moments, ridge, nothing)}
