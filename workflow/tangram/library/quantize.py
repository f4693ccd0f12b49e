"""Quantization of pieces after training, in closed form from their inputs on the distill split.

Pieces in int8 or fp8 are smoothed (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438): a factor per input channel
moves the range of the inputs into the weights, equal for all matrices with the same input. The exponent with the
smallest held-out loss is chosen per piece. Then the weights are rounded to nearest, or with compensation of the
rounding error (GPTQ, Frantar et al. 2023, arXiv 2210.17323), whichever gives the smaller held-out loss. Each factor of
a low-rank operator is a matrix of its own, with its own inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tangram.activations import Activations
from tangram.blocks import HEAD, get_block
from tangram.blocks.base import GGUF_PRECISIONS
from tangram.gguf_types import rounded
from tangram.library.distill import LayerDistillation
from tangram.library.rounding import (
    Statistics,
    recorded,
    round_compensated,
    round_to_nearest,
    shared_by_values,
    smoothing,
)
from tangram.models.by_layer import materialize
from tangram.models.families import Shape, decoder_layers, subblock
from tangram.models.operators import separate_factors
from tangram.models.packed import SAME_INPUT
from tangram.models.quantized import SCALED, ScaledLinear
from tangram.models.replace import replace_head, replace_subblocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXPONENTS = (0.0, 0.5, 0.65, 0.8)  # of smoothing; 0 leaves the inputs as they are

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Quantized:
    """A quantized piece.

    Attributes:
        weights: tensors by their names inside the subblock.
        loss_before: held-out loss of the float piece.
        loss_after: held-out loss of the quantized piece.
        rounding: how it was rounded, such as ``'compensated, smoothing 0.5'``.
    """

    weights: Tensors
    loss_before: float
    loss_after: float
    rounding: str


def _rounded(
    float_weights: Mapping[str, torch.Tensor],
    groups: list[tuple[list[str], Statistics]],
    layer: type[ScaledLinear],
    exponent: float,
    compensated: bool,
    head_dim: int | None = None,
) -> Tensors:
    """Return the tensors of a piece of 8 bits: its matrices by groups of equal inputs; other tensors do not change.

    With ``head_dim``, the width of a head, the factors of an output projection are `shared_by_values`.
    """
    tensors = {name: t for name, t in float_weights.items() if name.removesuffix(".weight") not in _names(groups)}
    for names, statistics in groups:
        matrices = [float_weights[f"{name}.weight"] for name in names]
        smooth = smoothing(statistics, matrices, exponent)
        if head_dim is not None and names == ["o_proj"]:
            smooth = shared_by_values(smooth, len(float_weights["v_proj.weight"]) // head_dim, head_dim)
        moment = statistics.moment * torch.outer(smooth, smooth).double()
        for name, matrix in zip(names, matrices, strict=True):
            weight = matrix.float() / smooth
            rounded, scale = (
                round_compensated(weight, moment, layer) if compensated else round_to_nearest(weight, layer)
            )
            tensors |= {f"{name}.weight": rounded, f"{name}.scale": scale, f"{name}.smooth": smooth.clone()}
    return tensors


def _names(groups: list[tuple[list[str], Statistics]]) -> set[str]:
    return {name for names, _ in groups for name in names}


def _best(
    float_weights: Mapping[str, torch.Tensor],
    groups: list[tuple[list[str], Statistics]],
    layer: type[ScaledLinear],
    loss: Callable[[Tensors], float],
    head_dim: int | None = None,
) -> tuple[Tensors, float, str]:
    """Return the tensors with the smallest loss over exponents and roundings, the loss, and the rounding's name."""
    candidates = []
    for exponent in EXPONENTS:
        tensors = _rounded(float_weights, groups, layer, exponent, False, head_dim)
        candidates.append((loss(tensors), exponent, "nearest", tensors))
    value, exponent, rounding, tensors = min(candidates, key=lambda c: c[0])
    second = _rounded(float_weights, groups, layer, exponent, True, head_dim)
    if (compensated := loss(second)) < value:
        value, rounding, tensors = compensated, "compensated", second
    return tensors, value, f"{rounding}, smoothing {exponent:g}"


def _gguf(float_weights: Mapping[str, torch.Tensor], matrices: set[str], precision: str, where: str) -> Tensors:
    """Return a piece's tensors with its matrices rounded to a type of llama.cpp's."""
    return {
        name: rounded(tensor, precision, f"{where}, {name}") if name.removesuffix(".weight") in matrices else tensor
        for name, tensor in float_weights.items()
    }


def _bf16(float_weights: Mapping[str, torch.Tensor], matrices: set[str]) -> Tensors:
    return {
        name: tensor.bfloat16() if name.removesuffix(".weight") in matrices else tensor
        for name, tensor in float_weights.items()
    }


@torch.no_grad()
def quantize_subblock(
    problem: LayerDistillation,
    kind: str,
    variant: str,
    source: Mapping[str, torch.Tensor] | None,
    shared_smoothing: bool = False,
) -> Quantized:
    """Quantize one layer's piece.

    Args:
        problem: the layer's inputs, outputs and loss.
        kind: ``'attention'`` or ``'ffn'``.
        variant: the quantized variant, such as ``'width-0.5@int8'``.
        source: tensors of the float piece by their names inside the subblock; None for the parent's subblock.
        shared_smoothing: the factors of an output projection are `shared_by_values`.
    """
    config = problem.model.config
    block = get_block(kind, variant, Shape.of(config))
    precision = block.variant.precision
    assert precision is not None  # rule `distill_blocks` makes the others
    parent_layer = materialize(problem.layer)
    weights = dict(subblock(parent_layer, kind).state_dict() if source is None else source)
    layer = replace_subblocks(parent_layer, config, problem.index, block.overrides(), {kind: weights})
    before = problem.held_out_loss(layer, kind)
    separate_factors(subblock(layer, kind))
    weights = dict(subblock(layer, kind).state_dict())

    def loss(tensors: Tensors) -> float:
        quantized = replace_subblocks(parent_layer, config, problem.index, block.entries(), {kind: tensors})
        return problem.held_out_loss(quantized, kind)

    linears = {n: m for n, m in subblock(layer, kind).named_modules() if isinstance(m, nn.Linear)}
    if precision in GGUF_PRECISIONS:
        tensors = _gguf(weights, set(linears), precision, f"{kind} {variant} of layer {problem.index}")
        return Quantized(tensors, before, loss(tensors), "nearest")
    if precision == "bf16":
        tensors = _bf16(weights, set(linears))
        return Quantized(tensors, before, loss(tensors), "nearest")
    groups = _groups(problem, layer, kind, linears)
    head_dim = Shape.of(config).head_dim if shared_smoothing else None
    tensors, after, rounding = _best(weights, groups, SCALED[precision], loss, head_dim)
    return Quantized(tensors, before, after, rounding)


def _groups(
    problem: LayerDistillation, layer: nn.Module, kind: str, linears: Mapping[str, nn.Linear]
) -> list[tuple[list[str], Statistics]]:
    """Return the names of matrices with equal inputs, and the statistics of these on the training sequences."""
    groups = [[name for name in linears if name.removesuffix(".down") in names] for names in SAME_INPUT]
    grouped = {name for names in groups for name in names}
    groups = [names for names in [*groups, *([name] for name in linears if name not in grouped)] if names]
    with recorded({names[0]: linears[names[0]] for names in groups}) as statistics:
        for part in torch.arange(problem.training).split(problem.settings.batch_size):
            problem.predict(layer, kind, part)
    return [(names, statistics[names[0]]) for names in groups]


@torch.no_grad()
def quantize_head(model: PreTrainedModel, states: Activations, variant: str, holdout_fraction: float) -> Quantized:
    """Quantize the LM head; its loss is KL(float ‖ quantized) in nats per token.

    Args:
        model: the parent.
        states: its hidden states on the distill split.
        variant: such as ``'parent@int8'``.
        holdout_fraction: share of the sequences that measure the loss, at every fourth position.
    """
    precision = get_block(HEAD, variant, Shape.of(model.config)).variant.precision
    assert precision is not None  # the head's only float variant is the parent's
    head: Any = model.lm_head
    hidden = states.hidden(len(decoder_layers(model)))
    normed = torch.cat([model.model.norm(part) for part in hidden.split(1)])
    held_out = max(1, round(holdout_fraction * len(normed)))
    training, scored = normed[:-held_out].flatten(0, 1), normed[-held_out:, ::4].flatten(0, 1)
    target = head(scored).float().log_softmax(-1)

    def loss(tensors: Tensors) -> float:
        predicted = replace_head(head, precision, tensors)(scored).float().log_softmax(-1)
        return float((target.exp() * (target - predicted)).sum(-1).mean())

    weights = dict(head.state_dict())
    if precision in GGUF_PRECISIONS:
        tensors = _gguf(weights, {"weight"}, precision, f"head {variant}")
        return Quantized(tensors, 0.0, loss(tensors), "nearest")
    if precision == "bf16":
        tensors = {name: t.bfloat16() if name == "weight" else t for name, t in weights.items()}
        return Quantized(tensors, 0.0, loss(tensors), "nearest")
    named = {f"head.{name}": tensor for name, tensor in weights.items()}  # a group names its matrices

    def loss_of_named(tensors: Tensors) -> float:
        return loss({name.removeprefix("head."): tensor for name, tensor in tensors.items()})

    groups = [(["head"], Statistics.of(training))]
    tensors, after, rounding = _best(named, groups, SCALED[precision], loss_of_named)
    return Quantized({name.removeprefix("head."): t for name, t in tensors.items()}, 0.0, after, rounding)
