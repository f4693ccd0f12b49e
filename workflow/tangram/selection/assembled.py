"""True scores of many assembled children of one library on one text, with every shared prefix of layers run once.

Children that agree on all layers up to some depth have the same hidden states there, and those that begin with the
parent's layers begin with its activations. The children advance together, layer by layer, so that one layer's weights
are in memory at a time, as in `scores.replace_one`; the layers of several children that differ in later ones only run
once. LM head and metric are evaluated at a subset of the positions, the same for every child.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from tangram.activations import Activations
from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.library.pieces import Library
from tangram.metrics import compare_states
from tangram.models.families import decoder_layers
from tangram.models.forward import embed, layer_contexts, logits_of
from tangram.scores.replace_one import scored_positions
from tangram.search.objective import weights_of
from tangram.selection.candidates import child_head, child_layer, not_finite

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Layers = tuple[LayerChoice, ...]
CHILDREN_PER_PASS = 64  # whose hidden states are in memory at the same time


class AssembledScores:
    """True scores of children, per sequence of one text.

    Args:
        model: the parent.
        activations: the parent's hidden states of ``input_ids``.
        input_ids: the text, ``(sequences, length)``.
        library: source of the children's pieces.
        batch_size: sequences per forward pass.
        position_stride: see `scores.replace_one.scored_positions`.
        objective: a metric of `tables.SCORES`, such as ``'kl'``, or weights of several.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        activations: Activations,
        input_ids: torch.Tensor,
        library: Library,
        batch_size: int,
        position_stride: int = 1,
        objective: str | Mapping[str, float] = "kl",
    ):
        self.sequences = len(input_ids)
        self.layers_run = self.layers_asked = 0  # layer passes over one sequence, with and without sharing
        self._model, self._activations, self._library = model, activations, library
        self._batch_size, self._weights = batch_size, weights_of(objective)
        self._positions = scored_positions(input_ids.shape[1], position_stride)
        self._labels = input_ids[:, self._positions + 1]
        self._parent: Layers = (LayerChoice(),) * len(decoder_layers(model))
        self._heads = dict[str, "nn.Module"]()
        with torch.inference_mode():
            self._contexts = layer_contexts(model, embed(model, input_ids[:1].to(model.device)))

    @torch.inference_mode()
    def look(self, architectures: Sequence[Architecture], sequences: Sequence[int] | None = None) -> np.ndarray:
        """Return the scores of children on some sequences, by default all, ``(children, sequences)``.

        Raises:
            TangramError: a child's outputs are not finite.
        """
        rows = torch.arange(self.sequences) if sequences is None else torch.tensor(list(sequences), dtype=torch.long)
        values = np.empty((len(architectures), len(rows)))
        order = sorted(range(len(architectures)), key=lambda child: _names(architectures[child]))
        for start in range(0, len(order), CHILDREN_PER_PASS):
            children = order[start : start + CHILDREN_PER_PASS]
            values[children] = self._measure([architectures[child] for child in children], rows)
        for child in np.flatnonzero(~np.isfinite(values).all(1)):
            raise not_finite(int(child))
        return values

    def _measure(self, architectures: Sequence[Architecture], rows: torch.Tensor) -> np.ndarray:
        """Return the scores of children, ``(children, rows)``."""
        finals = self._final_states(dict.fromkeys(child.layers for child in architectures), rows)
        values = np.empty((len(architectures), len(rows)))
        for start in range(0, len(rows), self._batch_size):
            part = slice(start, start + self._batch_size)
            parent_states = self._states(finals[self._parent][part])
            parent_logits = logits_of(self._model, parent_states)
            labels = self._labels[rows[part]].flatten().to(parent_logits.device)
            for child, architecture in enumerate(architectures):
                states = self._states(finals[architecture.layers][part])
                logits = logits_of(self._model, states, self._head(architecture.head))
                metrics = compare_states(states, parent_states, logits, parent_logits, labels)
                terms = [weight * metrics[name].double() for name, weight in self._weights.items()]
                by_sequence = torch.stack(terms).sum(0).unflatten(0, (len(rows[part]), -1)).mean(1)
                values[child, part] = by_sequence.cpu().numpy()
        return values

    def _states(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the normed last hidden states at the scored positions, ``(tokens, hidden)``."""
        states: torch.Tensor = self._model.model.norm(hidden[:, self._positions.to(hidden.device)])
        return states.flatten(0, 1)

    def _final_states(self, paths: dict[Layers, None], rows: torch.Tensor) -> dict[Layers, torch.Tensor]:
        """Return the last hidden states of all paths and of the parent, by the path of layers."""
        depths = len(self._parent)
        starts = {path: _first_difference(path, self._parent) for path in paths}
        stored = sorted({*starts.values(), depths})
        inputs = dict(zip(stored, self._activations.of_sequences(rows, stored), strict=True))
        self.layers_asked += len(paths) * depths * len(rows)
        states: dict[Layers, torch.Tensor] = {}  # by the layers so far, of paths that left the parent's
        for depth in range(depths):
            prefixes: dict[LayerChoice, dict[Layers, None]] = {}
            for path in paths:
                if starts[path] <= depth:
                    prefixes.setdefault(path[depth], {})[path[: depth + 1]] = None
            following = {}
            for choice, group in prefixes.items():
                layer = child_layer(self._model, depth, choice, self._library)
                for prefix in group:
                    hidden = states[prefix[:-1]] if prefix[:-1] in states else inputs[depth]
                    batches = [layer(batch, **self._contexts[depth]) for batch in hidden.split(self._batch_size)]
                    following[prefix] = torch.cat(batches)
                    self.layers_run += len(rows)
            states = following
        return {**states, self._parent: inputs[depths]}

    def _head(self, variant: str) -> nn.Module:
        if variant not in self._heads:
            self._heads[variant] = child_head(self._model, variant, self._library)
        return self._heads[variant]


def _names(architecture: Architecture) -> tuple[tuple[str, str], ...]:
    """Return a sort key that puts children with long common prefixes side by side."""
    return tuple((layer.attention, layer.ffn) for layer in architecture.layers)


def _first_difference(path: Layers, parent: Layers) -> int:
    """Return the first layer in which a path differs from the parent; their number if none does."""
    return next((depth for depth, choice in enumerate(path) if choice != parent[depth]), len(parent))
