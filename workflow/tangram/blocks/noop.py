"""No-op: the subblock and its norm are gone, the residual stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import CONFIG_NAME, Block
from tangram.models.families import Shape

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration


class NoOp(Block):
    """Nothing in place of a subblock."""

    trainable = False

    def overrides(self, shape: Shape) -> dict[str, Any]:
        """Return the skip of this kind."""
        return {"skip": [CONFIG_NAME[self.kind]]}

    def initialise(self, parent: Any, shape: Shape, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Return no weights."""
        return {}
