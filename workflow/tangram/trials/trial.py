"""One trial: finetune a child on a draw of text, and measure its KL to the parent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tangram.blocks.base import CONFIG_NAME, KINDS
from tangram.models.families import decoder_layers
from tangram.models.replace import replace_subblocks

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def middle_layers(layers: int, share: float) -> range:
    """Return the layers in the middle that make up a share of all, at least one."""
    count = max(1, round(share * layers))
    start = (layers - count) // 2
    return range(start, start + count)


def remove_layers(model: PreTrainedModel, indices: range) -> None:
    """Replace layers of a model by layers without subblocks, in place.

    They stay in the list of layers, so the hidden states of other layers keep their numbers.
    """
    layers = decoder_layers(model)
    overrides = {"skip": [CONFIG_NAME[kind] for kind in KINDS]}
    weights: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in KINDS}
    for index in indices:
        layers[index] = replace_subblocks(layers[index], model.config, index, overrides, weights)
