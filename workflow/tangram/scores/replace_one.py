"""Replace-1-block scores (Puzzle, section 4.2): compare the parent with one subblock replaced to the parent.

Only the replaced layer and those after it run, from the cached input of that layer. The LM head and the KL are
evaluated at a subset of the positions, the same for every piece, in chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import torch

from tangram.activations import Activations
from tangram.blocks.architecture import LayerChoice
from tangram.blocks.base import CONFIG_NAME, HEAD, KINDS, NO_OP, PAIR, Block
from tangram.library.pairs import layer_of_pair
from tangram.library.pieces import State
from tangram.metrics import compare_states, standard_error_by_sequence
from tangram.models.by_layer import materialize
from tangram.models.families import decoder_layers
from tangram.models.forward import layer_contexts, logits_of
from tangram.models.replace import replace_head, replace_subblocks
from tangram.training.precision import autocast

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Row: TypeAlias = dict[str, float | int | str]


def scored_positions(length: int, stride: int) -> torch.Tensor:
    """Return the positions whose next-token predictions are compared: every ``stride``-th, ending with the last."""
    return torch.arange(length - 2, -1, -stride).flip(0)


class ReplaceOne:
    """Scores replaced layers, one at a time, on the same sequences and positions.

    Args:
        model: the parent.
        activations: the parent's hidden states of ``input_ids``.
        input_ids: the score split, ``(sequences, length)``.
        position_stride: see `scored_positions`.
        batch_size: sequences per forward pass.
        reference: the model to which all are compared, with its hidden states of ``input_ids``; the parent by default.
        compute: data type of matrix products in the layers; `float32` leaves each its operands' type.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        activations: Activations,
        input_ids: torch.Tensor,
        position_stride: int,
        batch_size: int,
        reference: tuple[PreTrainedModel, Activations] | None = None,
        compute: str = "float32",
    ):
        self._model, self._activations, self._batch_size, self._compute = model, activations, batch_size, compute
        self._positions = scored_positions(input_ids.shape[1], position_stride)
        self._labels = input_ids[:, self._positions + 1].to(model.device)
        parent, states_of_parent = reference or (model, activations)
        with torch.inference_mode():
            final = states_of_parent.hidden(len(decoder_layers(parent)))
            self._parent_states = [self._states(batch, parent) for batch in final.split(batch_size)]
            self._parent_logits = [logits_of(parent, states) for states in self._parent_states]

    def _states(self, hidden: torch.Tensor, model: PreTrainedModel | None = None) -> torch.Tensor:
        """Return the normed last hidden states at the scored positions, ``(tokens, hidden)``."""
        norm = (model or self._model).model.norm
        return norm(hidden[:, self._positions.to(hidden.device)]).flatten(0, 1)

    @torch.inference_mode()
    def score(self, index: int, layer: nn.Module) -> list[Row]:
        """Return metric, value, standard error and tokens for the parent with ``layer`` as its layer ``index``.

        The metrics are the KL, the LM loss increase, the distance of the last hidden states, and the token agreement.
        """
        later = list(decoder_layers(self._model))[index + 1 :]
        batches = list(self._activations.hidden(index).split(self._batch_size))
        contexts = layer_contexts(self._model, batches[0][:1])[index:]
        # All batches layer by layer, so that one layer's weights are in memory at a time.
        with autocast(self._model.device, self._compute):  # not in the head, whose rounded logits would change the KL
            for module, context in zip((layer, *later), contexts, strict=True):
                batches = [module(hidden, **context) for hidden in batches]
        return self._compare(batches)

    def score_piece(self, layer: int, block: Block, tensors: State) -> list[Row]:
        """Return the rows of `tables.SCORES` of one piece.

        Args:
            layer: the piece's layer; 0 for the head.
            block: the block of its variant.
            tensors: its weights, by their names inside the subblock or the head.
        """
        if block.kind == HEAD:
            rows = self.score_head(replace_head(self._model.lm_head, str(block.variant.precision), tensors))
        else:
            parent = materialize(decoder_layers(self._model)[layer])
            pieces = {block.kind: tensors}
            rows = self.score(layer, replace_subblocks(parent, self._model.config, layer, block.entries(), pieces))
        return [{"layer": layer, "kind": block.kind, "variant": str(block.variant), **row} for row in rows]

    def score_pair(self, layer: int, choice: LayerChoice, tensors: Mapping[str, State]) -> list[Row]:
        """Return the rows of `tables.SCORES` of a layer's two variants, replaced together.

        Args:
            layer: the layer's index.
            choice: the variants.
            tensors: their weights, by kind and name in the subblock.
        """
        rows = self.score(layer, layer_of_pair(self._model, layer, choice, tensors))
        return [{"layer": layer, "kind": PAIR, "variant": choice.pair, **row} for row in rows]

    def score_dropped(self, layer: int) -> list[Row]:
        """Return the rows of `tables.SCORES` of the parent without attention and FFN of one layer."""
        parent = materialize(decoder_layers(self._model)[layer])
        overrides = {"skip": [CONFIG_NAME[kind] for kind in KINDS]}
        weights: dict[str, State] = {kind: {} for kind in KINDS}
        rows = self.score(layer, replace_subblocks(parent, self._model.config, layer, overrides, weights))
        return [{"layer": layer, "kind": PAIR, "variant": LayerChoice(NO_OP, NO_OP).pair, **row} for row in rows]

    @torch.inference_mode()
    def score_head(self, head: nn.Module) -> list[Row]:
        """Return the rows of `score` for the parent with another LM head."""
        final = self._activations.hidden(len(decoder_layers(self._model)))
        return self._compare(list(final.split(self._batch_size)), head)

    def _compare(self, batches: list[torch.Tensor], head: nn.Module | None = None) -> list[Row]:
        """Compare last hidden states and their logits with the parent's."""
        parts: dict[str, list[torch.Tensor]] = {}
        for hidden, parent_states, parent_logits, labels in zip(
            batches, self._parent_states, self._parent_logits, self._labels.split(self._batch_size), strict=True
        ):
            sequences, states = len(hidden), self._states(hidden)
            logits = logits_of(self._model, states, head)
            metrics = compare_states(states, parent_states, logits, parent_logits, labels.flatten())
            for name, values in metrics.items():
                parts.setdefault(name, []).append(values.unflatten(0, (sequences, -1)))
        rows: list[Row] = []
        for name in ("kl", "lm_loss_increase", "cosine_distance", "agreement"):
            values = torch.cat(parts[name])
            mean, error = standard_error_by_sequence(values)
            rows.append({"metric": name, "value": mean, "standard_error": error, "tokens": values.numel()})
        return rows
