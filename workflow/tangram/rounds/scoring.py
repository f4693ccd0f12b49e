"""Scores of pieces in a child: what the child loses, against the parent, when a piece replaces its subblock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from tangram.activations import Activations, StreamedActivations
from tangram.blocks.architecture import Architecture, LayerChoice, per_layer_config
from tangram.blocks.base import HEAD, Block
from tangram.child.reassemble import Child, reassemble_state
from tangram.library.pieces import State
from tangram.models.families import Shape, decoder_layers
from tangram.models.replace import layer_of, replace_head
from tangram.rounds.options import Piece
from tangram.scores.replace_one import ReplaceOne, Row
from tangram.search.objective import weights_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ReplaceInChild(ReplaceOne):
    """Scores pieces in a child, on the same sequences and positions as `ReplaceOne` in the parent.

    Args:
        child: architecture and tensors.
        model: the same child as a model.
        parent: the parent, to whose predictions all are compared.
        parent_state: its tensors by their names in the checkpoint.
        activations: the parent's hidden states of ``input_ids``.
        input_ids: the score split, ``(sequences, length)``.
        position_stride: see `scores.replace_one.scored_positions`.
        batch_size: sequences per forward pass.
    """

    def __init__(
        self,
        child: Child,
        model: PreTrainedModel,
        parent: PreTrainedModel,
        parent_state: Mapping[str, torch.Tensor],
        activations: Activations,
        input_ids: torch.Tensor,
        position_stride: int,
        batch_size: int,
    ):
        states = StreamedActivations(model, input_ids, batch_size)
        super().__init__(model, states, input_ids, position_stride, batch_size, (parent, activations))
        self._child, self._parent, self._parent_state = child, parent, parent_state

    def score_piece(self, layer: int, block: Block, tensors: State) -> list[Row]:
        """Return the rows of `ReplaceOne.score_piece`: the child with the piece, compared to the parent."""
        variant = str(block.variant)
        if block.kind == HEAD:
            rows = self.score_head(replace_head(self._parent.lm_head, str(block.variant.precision), tensors))
        else:
            rows = self.score(layer, self._layer(layer, block.kind, variant, tensors))
        return [{"layer": layer, "kind": block.kind, "variant": variant, **row} for row in rows]

    def _layer(self, index: int, kind: str, variant: str, piece: State) -> torch.nn.Module:
        """Return the child's layer with a piece: the child of this layer alone, reassembled."""
        prefix, choice = f"model.layers.{index}.", self._child.architecture.layers[index]
        replaced = LayerChoice(**{**vars(choice), kind: variant})

        def alone(choice: LayerChoice) -> Architecture:
            return Architecture((*(LayerChoice(),) * index, choice))

        def of_layer(state: State) -> dict[str, torch.Tensor]:
            return {name: tensor for name, tensor in state.items() if name.startswith(prefix)}

        child = Child(alone(choice), of_layer(self._child.state))
        state = reassemble_state(of_layer(self._parent_state), child, alone(replaced), lambda *_: piece)
        tensors = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        overrides = per_layer_config(alone(replaced), Shape.of(self._parent.config)).get(index, {})
        return layer_of(decoder_layers(self._parent)[index], self._parent.config, index, overrides, tensors)

    @torch.inference_mode()
    def score_unchanged(self) -> list[Row]:
        """Return metric and value of the child itself, compared to the parent."""
        final = self._activations.hidden(len(decoder_layers(self._model)))
        return self._compare(list(final.split(self._batch_size)))


def increases(
    rows: Sequence[Row], unchanged: Sequence[Row], objective: str | Mapping[str, float]
) -> dict[Piece, float]:
    """Return every piece's increase of the objective over the child's own.

    Args:
        rows: of `ReplaceInChild.score_piece`, of all pieces.
        unchanged: of `ReplaceInChild.score_unchanged`.
        objective: a metric, or weights by metric.
    """
    weights, values = weights_of(objective), dict[Piece, float]()
    own = sum(weights.get(str(row["metric"]), 0.0) * float(row["value"]) for row in unchanged)
    for row in rows:
        piece = (int(row["layer"]), str(row["kind"]), str(row["variant"]))
        values[piece] = values.get(piece, -own) + weights.get(str(row["metric"]), 0.0) * float(row["value"])
    return values
