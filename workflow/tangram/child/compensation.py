"""Compensation of removed subblocks: the last matrix before them is fitted to the parent's hidden states behind them.

The idea is that of ReplaceMe (Shopkhoev et al. 2025, arXiv 2505.02819), here on the child's own activations, subblock
by subblock. The child keeps its shapes and precisions, so its costs do not change.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tangram.blocks.architecture import Architecture, per_layer_config
from tangram.blocks.base import GGUF_PRECISIONS, KINDS, NO_OP, Variant
from tangram.blocks.moments import damped
from tangram.gguf_types import rounded
from tangram.library.pieces import State, tensor_name
from tangram.library.requantize import put_rounded
from tangram.models.by_layer import materialize
from tangram.models.families import Shape, check_compensable, decoder_layers
from tangram.models.forward import embed, layer_contexts
from tangram.models.layouts import contribution_of, layout_of, residual_multiplier
from tangram.models.quantized import ScaledLinear
from tangram.models.replace import layer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 4  # sequences per forward pass
LAST = {"attention": "o_proj", "ffn": "down_proj"}  # the last matrix of a subblock
Subblock = tuple[int, str]
Stream = list[torch.Tensor]  # the residual stream, ``(sequences, length, hidden)``, in batches


def with_removed_behind(architecture: Architecture) -> list[tuple[Subblock, list[Subblock]]]:
    """Return every subblock that is not removed, in order, with the removed ones between it and the next."""
    found: list[tuple[Subblock, list[Subblock]]] = []
    for index, choice in enumerate(architecture.layers):
        for kind in KINDS:
            if getattr(choice, kind) != NO_OP:
                found.append(((index, kind), []))
            elif found:  # nothing can make up for what is removed at the beginning
                found[-1][1].append((index, kind))
    return found


@torch.inference_mode()
def compensate(
    state: State, architecture: Architecture, parent: PreTrainedModel, input_ids: torch.Tensor, ridge: float
) -> dict[str, torch.Tensor]:
    """Return a child's tensors with the last matrices before removed subblocks fitted.

    A matrix W of inputs x gets the least sum of ``|h - r - W x|^2 / |h|^2`` and of a ridge that shrinks it towards its
    values in ``state``: h is the parent's residual stream behind the removed subblocks, r the child's before the
    subblock of W. Matrices with a precision are rounded again. A subblock without such a matrix stays as it is.

    Args:
        state: the tensors of the assembled child, whose embedding is the parent's.
        architecture: its variants.
        parent: the parent, which may hold one layer at a time (`models.by_layer`).
        input_ids: a text, ``(sequences, length)``.
        ridge: strength relative to the mean squared input.

    Raises:
        TangramError: the parent has norms behind its subblocks, so that no matrix is the last.
    """
    check_compensable(parent.config.model_type)
    layers = decoder_layers(parent)
    layer_at = functools.lru_cache(maxsize=1)(functools.partial(child_layer, state, architecture, parent))
    of_parent = of_child = list(embed(parent, input_ids.to(parent.device)).split(BATCH))
    contexts, fitted, advanced = layer_contexts(parent, of_child[0][:1]), dict(state), 0
    order: list[Subblock] = [(index, kind) for index in range(len(layers)) for kind in KINDS]
    for (index, kind), gone in with_removed_behind(architecture):
        layer = layer_at(index)
        end = order.index((index, kind)) + len(gone) + 1
        for at, of_kind in order[advanced:end]:
            of_parent = behind(materialize(layers[at]), of_kind, of_parent, contexts[at])
        advanced = end
        if gone and (matrix := last_matrix(layer, kind)) is not None:
            fit(layer, kind, matrix, of_child, of_parent, contexts[index], ridge)
            precision = Variant.parse(getattr(architecture.layers[index], kind)).precision
            if precision in GGUF_PRECISIONS:  # a plain layer with values of this type
                where = f"{tensor_name(index, kind, LAST[kind])}, compensated"
                matrix.weight.data = rounded(matrix.weight, str(precision), where)
            for name, tensor in matrix.state_dict(prefix=tensor_name(index, kind, f"{LAST[kind]}.")).items():
                fitted[name] = tensor.to("cpu", state[name].dtype)
        of_child = behind(layer, kind, of_child, contexts[index])
    return fitted


def child_layer(state: State, architecture: Architecture, parent: PreTrainedModel, index: int) -> nn.Module:
    """Return one layer of a child that is not in memory as a model."""
    prefix, original = f"model.layers.{index}.", materialize(decoder_layers(parent)[index])
    tensors = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    entries = per_layer_config(architecture, Shape.of(parent.config)).get(index, {})
    return layer_of(original, parent.config, index, entries, tensors)


def last_matrix(layer: nn.Module, kind: str) -> Any:
    """Return the matrix whose outputs are those of a subblock; None if it has none, as a linear map."""
    matrix = getattr(getattr(layer, getattr(layout_of(layer), kind).module), LAST[kind], None)
    return matrix if isinstance(matrix, (nn.Linear, ScaledLinear)) else None


def behind(layer: Any, kind: str, stream: Stream, context: Mapping[str, Any]) -> Stream:
    """Return the residual stream behind a subblock of a layer."""
    place = getattr(layout_of(layer), kind)
    return [hidden + contribution_of(layer, place, hidden, **context) for hidden in stream]


def fit(
    layer: nn.Module, kind: str, matrix: Any, stream: Stream, goal: Stream, context: Mapping[str, Any], ridge: float
) -> None:
    """Fit a subblock's last matrix in place, so that the residual stream behind the subblock is nearly ``goal``."""
    weight = (matrix.matrix() if isinstance(matrix, ScaledLinear) else matrix.weight).float()
    rows, width = weight.shape
    moment, weighted = (weight.new_zeros(width, width, dtype=torch.float64) for _ in range(2))
    crossed = weight.new_zeros(width, rows, dtype=torch.float64)
    inputs: list[torch.Tensor] = []
    hook = matrix.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    for hidden, wanted in zip(stream, goal, strict=True):
        (output,) = behind(layer, kind, [hidden], context)
        x = inputs.pop().flatten(0, -2).float()
        error = (wanted - output).flatten(0, -2).float() / residual_multiplier(layer)
        share = 1 / wanted.flatten(0, -2).float().square().mean(-1, keepdim=True)  # the next norm divides by the stream
        if isinstance(matrix, ScaledLinear):  # its rounding needs the inputs' moment without weights
            moment += (x.T @ x).double()
        weighted += (x.T @ (x * share)).double()
        crossed += (x.T @ (error * share)).double()
    hook.remove()
    fitted = weight + torch.linalg.solve(damped(weighted, ridge), crossed).T.float()
    if isinstance(matrix, ScaledLinear):
        put_rounded(matrix, fitted, moment)
    else:
        matrix.weight.data = fitted.to(matrix.weight.dtype)
