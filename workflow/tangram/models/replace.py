"""Build one decoder layer of a child from the parent's layer and a piece's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from tangram.blocks import get_block
from tangram.blocks.base import PARENT
from tangram.models.by_layer import resident
from tangram.models.families import SUBBLOCK_NAMES, Shape, decoder_layers
from tangram.models.modeling_tangram import heterogeneous

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


def layer_config(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the config that one heterogeneous layer is built from."""
    layer = copy.copy(config)
    layer.skip, layer.linear, layer.structured = [], [], []
    for key, value in overrides.items():
        setattr(layer, key, value)
    return layer


def build_layer(
    model: PreTrainedModel, index: int, kind: str, variant: str, weights: Mapping[str, torch.Tensor]
) -> nn.Module:
    """Return the parent's layer ``index`` with its ``kind`` subblock replaced by a variant.

    Args:
        model: the parent.
        index: the layer.
        kind: ``'attention'`` or ``'ffn'``.
        variant: the variant's name.
        weights: the replaced subblock's tensors by their names inside the subblock.
    """
    parent_layer = resident(decoder_layers(model)[index])
    block = get_block(kind, variant)
    config = layer_config(model.config, block.overrides(Shape.of(model.config)))
    with torch.device(model.device):
        layer = heterogeneous(type(parent_layer))(config, index).to(model.dtype)
    replaced, _ = SUBBLOCK_NAMES[kind]
    expected = layer.state_dict()
    state = {name: tensor for name, tensor in parent_layer.state_dict().items() if name in expected}
    if variant != PARENT:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{replaced}.")}
        state |= {f"{replaced}.{name}": tensor for name, tensor in weights.items()}
    layer.load_state_dict(state)
    return layer.eval().requires_grad_(False)
