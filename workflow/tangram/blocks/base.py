"""The interface of a block, and the parent's own subblock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tangram.models.families import Shape

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration

PARENT = "parent"
FITTED_TOKENS = 16_384  # at a time: intermediate values of a whole split would not fit a GPU
CONFIG_NAME = {"attention": "attention", "ffn": "mlp"}  # transformers' names of the kinds in `skip`


@dataclass(frozen=True)
class Block:
    """One alternative for a subblock of kind ``'attention'`` or ``'ffn'``."""

    kind: str
    variant: str

    trainable = True

    def overrides(self, shape: Shape) -> dict[str, Any]:
        """Return this block's entries in a layer's `per_layer_config`; empty for the parent's own shape."""
        raise NotImplementedError

    def initialise(self, parent: Any, shape: Shape, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Return the subblock's initial weights by name (`k_proj.weight`, …), from the parent's, without training.

        Those that are computed may be float32 in a parent of low precision: training begins with them unrounded.
        """
        raise NotImplementedError


class ParentBlock(Block):
    """The parent's own subblock, untouched."""

    trainable = False

    def overrides(self, shape: Shape) -> dict[str, Any]:
        """Return no overrides."""
        return {}

    def initialise(self, parent: Any, shape: Shape, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Return the parent's weights."""
        return dict(parent.state_dict())
