"""Where the norms of a decoder layer stand: before its subblocks, after them, or both.

This file is copied into every child checkpoint that has the model's code, so it imports nothing but torch and other
copied files. It finds a layer's layout by the names of its norms, which transformers' families share.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch

from .window import attend_to_window


class Place(NamedTuple):
    """The names of a subblock's modules in a decoder layer.

    Attributes:
        module: the attention or the FFN.
        before: the norm of its input, or None.
        after: the norm of its output, or None.
    """

    module: str
    before: str | None
    after: str | None

    @property
    def norms(self) -> tuple[str, ...]:
        """The names of its norms."""
        return tuple(name for name in (self.before, self.after) if name is not None)


class Layout(NamedTuple):
    """The places of a layer's two subblocks."""

    attention: Place
    ffn: Place


PRE_NORM = Layout(Place("self_attn", "input_layernorm", None), Place("mlp", "post_attention_layernorm", None))
POST_NORM = Layout(
    Place("self_attn", None, "post_attention_layernorm"), Place("mlp", None, "post_feedforward_layernorm")
)
SANDWICH = Layout(
    Place("self_attn", "input_layernorm", "post_attention_layernorm"),
    Place("mlp", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
)


def layout_among(names: Collection[str]) -> Layout:
    """Return the layout of a layer whose modules, or tensors without their suffix, have these names."""
    for layout in (SANDWICH, POST_NORM):
        if all(norm in names for place in layout for norm in place.norms):
            return layout
    return PRE_NORM


def layout_of(layer: Any) -> Layout:
    """Return a decoder layer's layout; a norm that was removed (None) still counts."""
    return layout_among(layer._modules)


def subblock_input(layer: Any, place: Place, hidden: torch.Tensor) -> torch.Tensor:
    """Return a subblock's input, of the shape of the residual stream ``hidden``."""
    return hidden if place.before is None else getattr(layer, place.before)(hidden)


def subblock_output(layer: Any, place: Place, outputs: torch.Tensor) -> torch.Tensor:
    """Return a subblock's contribution to the residual stream from the outputs of its attention or FFN."""
    if place.after is not None:
        outputs = getattr(layer, place.after)(outputs)
    multiplier = residual_multiplier(layer)
    return outputs if multiplier == 1 else outputs * multiplier


def contribution_of(layer: Any, place: Place, hidden: torch.Tensor, **context: Any) -> torch.Tensor:
    """Return a subblock's contribution to the residual stream ``hidden``, ``(batch, tokens, hidden)``.

    Args:
        layer: the decoder layer; its attribute ``window``, if any, is the number of tokens that its attention sees.
        place: the subblock's place.
        hidden: the residual stream before the subblock.
        context: further arguments of attention, which an FFN does not get.
    """
    module, inputs = getattr(layer, place.module), subblock_input(layer, place, hidden)
    if place.module != "self_attn":
        outputs = module(inputs)
    elif (window := getattr(layer, "window", None)) is None:
        outputs = module(hidden_states=inputs, **context)[0]
    else:
        outputs = attend_to_window(module, window, inputs, **context)
    return subblock_output(layer, place, outputs)


def residual_multiplier(layer: Any) -> float:
    """Return the factor of both subblocks' outputs, which only Granite has."""
    return getattr(layer, "residual_multiplier", 1.0)
