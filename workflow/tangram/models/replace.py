"""Build a decoder layer of a child from the parent's layer and the weights of pieces."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from tangram.models.families import SUBBLOCK_NAMES
from tangram.models.modeling_tangram import heterogeneous
from tangram.models.quantized import with_precision

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


def layer_config(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the config of one heterogeneous layer: the model's config with the layer's overrides."""
    layer = copy.copy(config)
    layer.skip, layer.linear, layer.structured, layer.precision = [], [], [], []
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
        layer: the parent's layer, with its weights in memory; it is not changed.
        config: the parent's config.
        index: the layer's index in the model.
        overrides: the layer's entries in `per_layer_config`.
        tensors: the weights of the replaced subblocks, by kind (``'attention'``, ``'ffn'``) and name in the subblock.
    """
    replaced = _empty_layer(layer, config, index, overrides)
    expected = replaced.state_dict()
    state = {name: tensor for name, tensor in layer.state_dict().items() if name in expected}
    for kind, weights in tensors.items():
        prefix = f"{SUBBLOCK_NAMES[kind]}."
        state = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
        state |= {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    replaced.load_state_dict(state)
    return replaced.eval().requires_grad_(False)


def layer_of(
    layer: nn.Module,
    config: PreTrainedConfig,
    index: int,
    overrides: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> nn.Module:
    """Return a child's layer, in evaluation mode and without gradients.

    Args:
        layer: the parent's layer, of which only class, device and dtype count.
        config: the parent's config.
        index: the layer's index in the model.
        overrides: the layer's entries in `per_layer_config`.
        tensors: all weights of the child's layer, by their names in the layer.
    """
    child_layer = _empty_layer(layer, config, index, overrides)
    child_layer.load_state_dict(dict(tensors))
    return child_layer.eval().requires_grad_(False)


def _empty_layer(layer: nn.Module, config: PreTrainedConfig, index: int, overrides: Mapping[str, Any]) -> nn.Module:
    """Return a child's layer with initial weights, on the device and in the dtype of the parent's layer."""
    example = next(layer.parameters())
    with torch.device(example.device):
        return heterogeneous(type(layer))(layer_config(config, overrides), index).to(example.dtype)


def replace_head(head: Any, precision: str, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return an LM head of the parent's shape in another precision, in evaluation mode and without gradients.

    Args:
        head: the parent's head; it is not changed.
        precision: such as ``'int8'``.
        tensors: the weights by their names inside the head.
    """
    replaced = with_precision(head, precision)
    replaced.load_state_dict(dict(tensors))
    return replaced.to(head.weight.device).eval().requires_grad_(False)
