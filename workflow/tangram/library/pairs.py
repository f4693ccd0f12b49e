"""A layer of the parent with both subblocks replaced by a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tangram.blocks.architecture import Architecture, LayerChoice, per_layer_config
from tangram.library.pieces import State
from tangram.models.by_layer import materialize
from tangram.models.families import Shape, decoder_layers
from tangram.models.replace import replace_subblocks

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def layer_of_pair(model: PreTrainedModel, index: int, choice: LayerChoice, tensors: Mapping[str, State]) -> nn.Module:
    """Return the parent's layer with both subblocks replaced, in evaluation mode and without gradients.

    Args:
        model: the parent.
        index: the layer's index.
        choice: the variants of its attention and its FFN.
        tensors: weights of both, by kind and name in the subblock.

    Raises:
        TangramError: a variant cannot replace this parent's subblock, or is not smaller.
    """
    overrides = per_layer_config(Architecture((choice,)), Shape.of(model.config)).get(0, {})
    return replace_subblocks(materialize(decoder_layers(model)[index]), model.config, index, overrides, tensors)
