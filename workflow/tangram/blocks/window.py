"""Attention to a window: each token attends to the last K tokens, itself included, and to the first few.

The first tokens are attention sinks: without them, attention of trained models breaks down (StreamingLLM, arXiv
2309.17453). `models/modeling_tangram.py` has their number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.blocks.base import LARGEST_COUNT, PRECISIONS, Block, register

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration


@register
class Window(Block):
    """`window-K`: the parent's attention to the last K tokens, and to the first 4."""

    family, kinds, form, sizes = "window", ("attention",), "window-K", int
    label, hue, severity = "w{size}", ("#bfe3d9", "#1b7f6b"), 1
    formats = ()  # llama.cpp and vLLM know no sinks beside a window
    precisions = PRECISIONS
    trainable = False  # the parent's weights

    def overrides(self) -> dict[str, Any]:
        """Return the window in tokens."""
        return {"attention_window": int(self.size)}

    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Return the parent's weights."""
        return dict(parent.state_dict())

    def relative_size(self) -> float:
        """Return 1: no weight is missing."""
        return 1.0

    @classmethod
    def unchanged_length(cls, size: int | float | None) -> int | None:
        """Return the window."""
        return None if size is None else int(size)

    @classmethod
    def suggest(cls, number: float | None) -> str | None:
        """Return the name with the number rounded down."""
        return None if number is None else f"window-{min(LARGEST_COUNT, max(1, int(number)))}"
