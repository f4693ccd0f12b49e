"""One vector instead of a subblock and its norm: the mean of the subblock's outputs, added to every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import CONFIG_NAME, KINDS, Block, register

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration


@register
class Constant(Block):
    """`constant`: a vector of the hidden size."""

    family, kinds, form = "constant", KINDS, "constant"
    label, hue, severity = "c", ("#d55e00", "#d55e00"), 5
    formats = ("gguf",)  # as the bias of the subblock before it
    part = ""
    precisions = ()
    normed = False
    uses_moments = True
    trainable = False  # the mean is already the least-squares optimum of the local problem

    def overrides(self) -> dict[str, Any]:
        """Return the entries of a linear map without matrix."""
        name = CONFIG_NAME[self.kind]
        return {"linear": [name, f"{name}=constant"]}

    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Return the weighted mean of the parent's outputs."""
        return {"vector": calibration.moments(parent).output_mean.float()}

    def relative_size(self) -> float:
        """Return the vector's weights relative to the subblock's."""
        return self.shape.hidden / self.shape.parameters(self.kind)
