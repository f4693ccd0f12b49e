"""Matrices of 8 bits in a finetuning: floating point while they are trained, rounded again afterwards.

The distance between two values of 8 bits exceeds the steps of AdamW, and a training of the other weights alone gains
little. The rounding compensates its error on the trained child's own inputs (GPTQ, Frantar et al. 2023, arXiv
2210.17323); the factors of the smoothing stay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tangram.library.rounding import Statistics, recorded, round_compensated
from tangram.models.families import decoder_layers
from tangram.models.forward import embed, layer_contexts
from tangram.models.quantized import ScaledLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CALIBRATION_TOKENS = 8192
BATCH = 4  # sequences per forward pass

Scaled = Mapping[str, ScaledLinear]  # by the layer's name in the model


def to_float(model: PreTrainedModel) -> dict[str, ScaledLinear]:
    """Replace every layer of 8 bits by a linear layer of the model's dtype with the same matrix.

    Returns:
        The replaced layers by their names, for `round_again`.
    """
    replaced = {name: module for name, module in model.named_modules() if isinstance(module, ScaledLinear)}
    for name, scaled in replaced.items():
        linear = nn.Linear(scaled.in_features, scaled.out_features, bias=scaled.bias is not None, device="meta")
        linear.weight = nn.Parameter(scaled.matrix().detach().to(model.dtype))
        if scaled.bias is not None:
            linear.bias = scaled.bias
        model.set_submodule(name, linear.train(scaled.training))
    return replaced


@torch.no_grad()
def round_again(model: PreTrainedModel, replaced: Scaled, input_ids: torch.Tensor) -> None:
    """Undo `to_float` in place: round the present matrices to 8 bits.

    The inputs are those of the trained floats, and one layer's statistics are in memory at a time.

    Args:
        model: the trained model.
        replaced: the layers that `to_float` returned; they get the rounded matrices.
        input_ids: a text for the inputs of the matrices, ``(sequences, length)``, of which the first
            `CALIBRATION_TOKENS` are read.
    """
    if not replaced:
        return
    count = max(1, CALIBRATION_TOKENS // input_ids.shape[1])
    batches = [embed(model, part.to(model.device)) for part in input_ids[:count].split(BATCH)]
    contexts = layer_contexts(model, batches[0][:1])
    for index, layer in enumerate(decoder_layers(model)):
        prefix = f"model.layers.{index}."
        inside = {name: scaled for name, scaled in replaced.items() if name.startswith(prefix)}
        with _inputs_of(model, inside) as statistics:
            batches = [layer(hidden, **contexts[index]) for hidden in batches]
        _round(model, inside, statistics)
    head = {name: scaled for name, scaled in replaced.items() if name == "lm_head"}
    with _inputs_of(model, head) as statistics:
        for hidden in batches if head else ():
            model.lm_head(model.model.norm(hidden))
    _round(model, head, statistics)


def _inputs_of(model: PreTrainedModel, replaced: Scaled) -> contextlib.AbstractContextManager[dict[str, Statistics]]:
    return recorded({name: model.get_submodule(name) for name in replaced})


def _round(model: PreTrainedModel, replaced: Scaled, statistics: Mapping[str, Statistics]) -> None:
    """Put the layers of 8 bits back, with the rounded matrices."""
    for name, scaled in replaced.items():
        linear: Any = model.get_submodule(name)
        put_rounded(scaled, linear.weight.detach().float(), statistics[name].moment)
        if scaled.bias is not None:
            scaled.bias.data = linear.bias.detach().to(scaled.bias.dtype)
        model.set_submodule(name, scaled)


def put_rounded(scaled: ScaledLinear, matrix: torch.Tensor, moment: torch.Tensor) -> None:
    """Give a layer of 8 bits another matrix, in place; the factors of its smoothing stay.

    Args:
        scaled: the layer.
        matrix: float32, ``(out, in)``.
        moment: second moments of the layer's inputs, ``(in, in)``, float64.
    """
    smoothed = moment * torch.outer(scaled.smooth, scaled.smooth).double()
    scaled.weight, scale = round_compensated(matrix / scaled.smooth, smoothed, type(scaled))
    scaled.scale.data = scale
