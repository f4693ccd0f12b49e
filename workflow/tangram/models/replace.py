"""Build one decoder layer of a child from the parent's layer and the weights of pieces."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from tangram.models.families import SUBBLOCK_NAMES
from tangram.models.modeling_tangram import heterogeneous

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


def layer_config(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the config that one heterogeneous layer is built from."""
    layer = copy.copy(config)
    layer.skip, layer.linear, layer.structured = [], [], []
    for key, value in overrides.items():
        setattr(layer, key, value)
    return layer


def replace_subblocks(
    layer: nn.Module,
    config: PreTrainedConfig,
    index: int,
    overrides: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
) -> nn.Module:
    """Return a copy of a parent's layer with some of its subblocks replaced, in evaluation mode and without gradients.

    Args:
        layer: the parent's, with its weights in memory; it stays as it is.
        config: the parent's.
        index: the layer's place in the model.
        overrides: how the layer's config differs (`per_layer_config`).
        tensors: the replaced subblocks' weights by kind (``'attention'``, ``'ffn'``) and by their names inside.
    """
    example = next(layer.parameters())
    with torch.device(example.device):
        replaced = heterogeneous(type(layer))(layer_config(config, overrides), index).to(example.dtype)
    expected = replaced.state_dict()
    state = {name: tensor for name, tensor in layer.state_dict().items() if name in expected}
    for kind, weights in tensors.items():
        prefix = f"{SUBBLOCK_NAMES[kind][0]}."
        state = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
        state |= {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    replaced.load_state_dict(state)
    return replaced.eval().requires_grad_(False)
