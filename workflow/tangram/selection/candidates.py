"""Scores of many children on many prompts, computed when they are first asked for and kept.

Children of one parent have layers in common. Those that agree on all layers up to some depth have the same hidden
states there, so a batch of prompts runs through the tree of their layers, the parent's own path among them, and what
several children share from the bottom up is run once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from tangram.blocks.architecture import Architecture, LayerChoice, per_layer_config
from tangram.blocks.base import NO_OP, PARENT
from tangram.errors import TangramError
from tangram.files import atomic_path
from tangram.library.pieces import Library
from tangram.metrics import compare
from tangram.models.families import Shape, decoder_layers
from tangram.models.forward import layer_context
from tangram.models.replace import replace_subblocks

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

CHUNK = 256  # positions whose logits exist at a time
METRICS = {"kl": "kl", "lm_loss": "loss"}  # names here and in `metrics.compare`


def cut_prompts(input_ids: torch.Tensor, length: int) -> torch.Tensor:
    """Cut sequences ``(sequences, tokens)`` into prompts ``(prompts, length)``; what does not fill one is dropped.

    Raises:
        TangramError: sequences are shorter than a prompt.
    """
    per_sequence = input_ids.shape[1] // length
    if not per_sequence:
        raise TangramError(
            f"prompts of {length} tokens do not fit into sequences of {input_ids.shape[1]}; "
            "lower the target's selection.prompt_tokens"
        )
    return input_ids[:, : per_sequence * length].reshape(-1, length)


def not_finite(arm: int) -> TangramError:
    """Return the error of a candidate that computes nonsense."""
    return TangramError(f"candidate {arm}: its outputs are not finite; delete its pieces and run again")


def child_layer(model: PreTrainedModel, index: int, choice: LayerChoice, library: Library) -> nn.Module:
    """Return the parent's layer ``index`` with both subblocks as chosen; the very same where nothing changes."""
    parent_layer = decoder_layers(model)[index]
    if choice == LayerChoice():
        return parent_layer
    overrides = per_layer_config((choice,), Shape.of(model.config)).get(0, {})
    pieces = {kind: library(kind, variant, index) for kind, variant in asdict(choice).items() if variant != PARENT}
    return replace_subblocks(parent_layer, model.config, index, overrides, pieces)


class CandidateScores:
    """A table of candidates and prompts, filled where it is looked at; `selection.choose.Scores` says how it is used.

    Args:
        model: the parent.
        prompts: their tokens, ``(prompts, length)``.
        architectures: the candidates.
        library: where their pieces come from.
        metric: one of `METRICS`; the mean over a prompt's tokens.
        batch_size: prompts per forward pass.
        cache: file to keep scores in, beyond a kill; none without.
        identity: what the scores are a function of; a cache of another identity is not read.
        checkpoint_seconds: time between two saves.
    """

    ordinal: bool = False  # values mean more than which of two is less
    KEPT: ClassVar[tuple[str, ...]] = ("values",)  # arrays that outlive a kill

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: torch.Tensor,
        architectures: Sequence[Architecture],
        library: Library,
        metric: str,
        batch_size: int,
        cache: Path | None = None,
        identity: str = "",
        checkpoint_seconds: float = 60.0,
    ):
        self.arms, self.prompts = len(architectures), len(prompts)
        self.values = np.full((self.arms, self.prompts), np.nan)
        self.layers_run = self.layers_asked = 0  # layer passes made, and those that children one by one would have made
        self._model, self._tokens, self._metric, self._batch_size = model, prompts, metric, batch_size
        self._architectures = dict(enumerate(architectures))
        self._library, self._layers = library, dict[tuple[int, LayerChoice], "nn.Module"]()
        self._cache, self._identity, self._seconds = cache, identity, checkpoint_seconds
        with torch.inference_mode():
            self._context = layer_context(model, model.model.embed_tokens(prompts[:1].to(model.device)))
        self._saved = time.monotonic()
        if cache is not None and cache.exists():
            self._restore(cache)

    @property
    def cells(self) -> int:
        """Scores known so far."""
        return int(np.isfinite(self.values).sum())

    def look(self, arms: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """Return the scores of ``arms`` ``(k,)`` on ``prompts`` ``(m,)``, ``(k, m)``, computing those not known.

        Raises:
            TangramError: a candidate's outputs are not finite.
        """
        for start in range(0, len(prompts), self._batch_size):
            batch = prompts[start : start + self._batch_size]
            unknown = np.isnan(self.values[np.ix_(arms, batch)])
            if unknown.any():
                self._fill(arms[unknown.any(1)], batch[unknown.any(0)])
            if self._cache is not None and time.monotonic() - self._saved > self._seconds:
                self.save()
        return self.values[np.ix_(arms, prompts)]

    @torch.inference_mode()
    def _fill(self, arms: np.ndarray, prompts: np.ndarray) -> None:
        for arm, values in self._measure(arms, prompts).items():
            found = values.cpu().numpy()
            if not np.isfinite(found).all():
                raise not_finite(arm)
            self.values[arm, prompts] = found

    def _measure(self, arms: np.ndarray, prompts: np.ndarray) -> dict[int, torch.Tensor]:
        """Return the scores of each arm, ``(prompts,)``."""
        ids = self._tokens[torch.from_numpy(prompts)].to(self._model.device)
        parent = (LayerChoice(),) * len(decoder_layers(self._model))
        paths = {-1: parent, **{int(arm): self._architectures[int(arm)] for arm in arms}}
        finals = self._final_states(self._model.model.embed_tokens(ids), 0, paths)
        norm, head = self._model.model.norm, self._model.lm_head
        hidden = {arm: norm(final[:, :-1]).flatten(0, 1).split(CHUNK) for arm, final in finals.items()}
        found: dict[int, list[torch.Tensor]] = {arm: [] for arm in hidden if arm >= 0}
        for index, labels in enumerate(ids[:, 1:].flatten().split(CHUNK)):
            parent_logits = head(hidden[-1][index])
            for arm, parts in found.items():
                parts.append(compare(head(hidden[arm][index]), parent_logits, labels)[METRICS[self._metric]])
        return {arm: torch.cat(parts).unflatten(0, (len(ids), -1)).double().mean(1) for arm, parts in found.items()}

    def _final_states(
        self, hidden: torch.Tensor, depth: int, paths: Mapping[int, Architecture]
    ) -> dict[int, torch.Tensor]:
        """Return the last hidden states of all paths, which share all layers below ``depth``."""
        if depth == len(decoder_layers(self._model)):
            return dict.fromkeys(paths, hidden)
        groups: dict[LayerChoice, dict[int, Architecture]] = {}
        for arm, architecture in paths.items():
            groups.setdefault(architecture[depth], {})[arm] = architecture
        finals = dict[int, torch.Tensor]()
        for choice, group in groups.items():
            self.layers_run, self.layers_asked = self.layers_run + 1, self.layers_asked + len(group)
            finals |= self._final_states(self._layer(depth, choice)(hidden, **self._context), depth + 1, group)
        return finals

    def _layer(self, depth: int, choice: LayerChoice) -> nn.Module:
        if (depth, choice) not in self._layers:
            self._layers[depth, choice] = child_layer(self._model, depth, choice, self._library)
        return self._layers[depth, choice]

    def save(self) -> None:
        """Write the scores to the cache."""
        if self._cache is not None:
            with atomic_path(self._cache) as temporary, open(temporary, "wb") as stream:
                np.savez(stream, identity=np.array(self._identity), **{name: getattr(self, name) for name in self.KEPT})
            self._saved = time.monotonic()

    def _restore(self, cache: Path) -> None:
        try:
            with np.load(cache) as kept:
                if str(kept["identity"]) == self._identity and kept["values"].shape == self.values.shape:
                    for name in self.KEPT:
                        setattr(self, name, kept[name])
        except (OSError, ValueError, KeyError) as error:
            raise TangramError(f"{cache} is damaged ({error}); delete it to select from the beginning") from error


def shared_layers(architectures: Sequence[Architecture]) -> float:
    """Return the share of layer passes that the tree of candidates and their parent saves, if all see every prompt."""
    paths = [(LayerChoice(),) * len(architectures[0]), *architectures]
    run = {path[: depth + 1] for path in paths for depth in range(len(path))}
    return 1 - len(run) / sum(map(len, paths))


def layer_importance(
    model: PreTrainedModel, prompts: torch.Tensor, batch_size: int, cache: Path | None = None, identity: str = ""
) -> np.ndarray:
    """Return the KL of the parent to itself without each layer, on each prompt, ``(prompts, layers)``.

    Replace-1-block scores (Puzzle, section 4.2) with nothing in a layer's place, prompt by prompt: the parent is run
    once up to every layer, and from there on without it. Arguments are those of `CandidateScores`.
    """
    parent = (LayerChoice(),) * len(decoder_layers(model))
    nothing = (LayerChoice(NO_OP, NO_OP),)
    without = [parent[:layer] + nothing + parent[layer + 1 :] for layer in range(len(parent))]
    scores = CandidateScores(model, prompts, without, lambda *_: {}, "kl", batch_size, cache, identity)
    found = scores.look(np.arange(scores.arms), np.arange(scores.prompts))
    scores.save()
    return found.T
