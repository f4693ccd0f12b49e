"""The parent's subblock, which every layer can keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import HEAD, KINDS, PARENT, Block, register

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration


@register
class Parent(Block):
    """`parent`: the unchanged subblock."""

    family, kinds, form = PARENT, (*KINDS, HEAD), PARENT
    label, hue, severity = "", ("#d0d4d8", "#d0d4d8"), 0  # the color of the report's rules
    trainable = False

    def overrides(self) -> dict[str, Any]:
        """Return no overrides."""
        return {}

    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Return the parent's weights."""
        return dict(parent.state_dict())

    def relative_size(self) -> float:
        """Return 1."""
        return 1.0
