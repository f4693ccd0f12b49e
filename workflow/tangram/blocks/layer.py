"""Build one decoder layer of a child from the parent's layer and a piece's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tangram.blocks import get_block
from tangram.blocks.base import PARENT
from tangram.checkpoint import resident
from tangram.child.modeling import heterogeneous
from tangram.errors import TangramError
from tangram.families import SUBBLOCK_NAMES, Shape, decoder_layers
from tangram.files import check_tensors

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


def tensor_name(layer: int, kind: str, name: str) -> str:
    """Return a subblock tensor's full name in a checkpoint, e.g. ``model.layers.7.mlp.up_proj.weight``."""
    return f"model.layers.{layer}.{SUBBLOCK_NAMES[kind][0]}.{name}"


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


def read_piece(path: str | Path, layer: int, kind: str) -> dict[str, torch.Tensor]:
    """Read one layer's subblock tensors from a library shard, by their names inside the subblock.

    Raises:
        TangramError: the shard is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    prefix = tensor_name(layer, kind, "")
    check_tensors(path)
    try:
        with safe_open(path, framework="pt") as shard:
            names = [name for name in shard.keys() if name.startswith(prefix)]  # noqa: SIM118 (it is not a dict)
            return {name.removeprefix(prefix): shard.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise TangramError(f"{path} cannot be read ({error}); delete it and run again: it is rebuilt") from error
