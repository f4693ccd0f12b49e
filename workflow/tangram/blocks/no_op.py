"""No-op: the subblock and its norm are removed; the residual stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import CONFIG_NAME, KINDS, NO_OP, Block, register

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration


@register
class NoOp(Block):
    """`no-op`: no subblock."""

    family, kinds, form = NO_OP, KINDS, NO_OP
    label, hue, severity = "", ("#606870", "#606870"), 5  # the report's muted gray
    trainable = False
    part = ""
    normed = False
    precisions = ()

    def overrides(self) -> dict[str, Any]:
        """Return the entry that skips this kind of subblock."""
        return {"skip": [CONFIG_NAME[self.kind]]}

    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Return no weights."""
        return {}

    def relative_size(self) -> float:
        """Return 0."""
        return 0.0
