"""A parent's layer with one subblock replaced, as in scoring and distillation."""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from tangram.blocks import get_block
from tangram.models.families import Shape, decoder_layers
from tangram.models.replace import replace_subblocks


def replaced(
    model: PreTrainedModel, index: int, kind: str, variant: str, weights: Mapping[str, torch.Tensor]
) -> nn.Module:
    """Return the parent's layer ``index`` with a variant in place of its ``kind`` subblock."""
    overrides = get_block(kind, variant, Shape.of(model.config)).overrides()
    return replace_subblocks(decoder_layers(model)[index], model.config, index, overrides, {kind: weights})
