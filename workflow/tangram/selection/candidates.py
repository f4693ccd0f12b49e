"""Scores of many children on many prompts, computed on demand and cached.

Children that agree on all layers up to some depth have the same hidden states there. Therefore a batch of prompts runs
through the tree of the children's and the parent's layers, and each shared prefix of layers runs once. Each
child's head follows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from tangram.blocks.architecture import Architecture, LayerChoice, per_layer_config
from tangram.blocks.base import HEAD, NO_OP, Variant
from tangram.errors import TangramError
from tangram.files import atomic_path
from tangram.library.pieces import Library
from tangram.metrics import compare
from tangram.models.families import Shape, decoder_layers
from tangram.models.forward import embed, layer_contexts, logits_of
from tangram.models.replace import replace_head, replace_subblocks

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

CHUNK = 256  # positions per chunk of logits
METRICS = {"kl": "kl", "lm_loss": "loss"}  # config's name: name in `metrics.compare`


def cut_prompts(input_ids: torch.Tensor, length: int) -> torch.Tensor:
    """Cut sequences ``(sequences, tokens)`` into prompts ``(prompts, length)`` and drop the remainders.

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
    """Return the error of a candidate with outputs that are not finite."""
    return TangramError(f"candidate {arm}: its outputs are not finite; delete its pieces and run again")


def child_layer(model: PreTrainedModel, index: int, choice: LayerChoice, library: Library) -> nn.Module:
    """Return layer ``index`` with the chosen subblocks; the parent's layer itself if both are the parent's."""
    parent_layer = decoder_layers(model)[index]
    if choice == LayerChoice():
        return parent_layer
    overrides = per_layer_config(Architecture((choice,)), Shape.of(model.config)).get(0, {})
    stored = Architecture((choice,)).stored()
    pieces = {kind: library(kind, name, index) for _, kind, _, name in stored}
    return replace_subblocks(parent_layer, model.config, index, overrides, pieces)


def child_head(model: PreTrainedModel, variant: str, library: Library) -> nn.Module:
    """Return a variant of the LM head; the parent's head itself for the parent's variant."""
    precision = Variant.parse(variant).precision
    return model.lm_head if precision is None else replace_head(model.lm_head, precision, library(HEAD, variant, 0))


class CandidateScores:
    """A lazily filled table of candidates and prompts; implements `selection.choose.Scores`.

    Args:
        model: the parent.
        prompts: token ids, ``(prompts, length)``.
        architectures: the candidates' architectures.
        library: source of the candidates' pieces.
        metric: one of `METRICS`, averaged over a prompt's tokens.
        batch_size: prompts per forward pass.
        cache: file of the scores, from which a killed job resumes; None disables it.
        identity: fingerprint of all that determines the scores; a cache with another identity is ignored.
        checkpoint_seconds: seconds between two saves.
    """

    ordinal: bool = False  # see `selection.choose.Scores.ordinal`
    CACHED: ClassVar[tuple[str, ...]] = ("values",)  # names of the arrays in the cache

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
        self.layers_run = self.layers_asked = 0  # layer passes with and without sharing
        self._model, self._tokens, self._metric, self._batch_size = model, prompts, metric, batch_size
        self._architectures = dict(enumerate(architectures))
        self._library, self._layers = library, dict[tuple[int, LayerChoice], "nn.Module"]()
        self._heads = {variant: child_head(model, variant, library) for variant in {a.head for a in architectures}}
        self._cache, self._identity, self._seconds = cache, identity, checkpoint_seconds
        with torch.inference_mode():
            self._contexts = layer_contexts(model, embed(model, prompts[:1].to(model.device)))
        self._saved = time.monotonic()
        if cache is not None and cache.exists():
            self._restore(cache)

    @property
    def cells(self) -> int:
        """Number of scores computed so far."""
        return int(np.isfinite(self.values).sum())

    def look(self, arms: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """Return the scores of ``arms`` ``(k,)`` on ``prompts`` ``(m,)``, ``(k, m)``; compute missing ones.

        Raises:
            TangramError: a candidate's outputs are not finite.
        """
        for start in range(0, len(prompts), self._batch_size):
            batch = prompts[start : start + self._batch_size]
            missing = np.isnan(self.values[np.ix_(arms, batch)])
            if missing.any():
                self._fill(arms[missing.any(1)], batch[missing.any(0)])
            if self._cache is not None and time.monotonic() - self._saved > self._seconds:
                self.save()
        return self.values[np.ix_(arms, prompts)]

    @torch.inference_mode()
    def _fill(self, arms: np.ndarray, prompts: np.ndarray) -> None:
        for arm, values in self._measure(arms, prompts).items():
            scores = values.cpu().numpy()
            if not np.isfinite(scores).all():
                raise not_finite(arm)
            self.values[arm, prompts] = scores

    def _measure(self, arms: np.ndarray, prompts: np.ndarray) -> dict[int, torch.Tensor]:
        """Return the scores of each arm, ``(prompts,)``."""
        ids = self._tokens[torch.from_numpy(prompts)].to(self._model.device)
        parent = (LayerChoice(),) * len(decoder_layers(self._model))
        paths = {-1: parent, **{int(arm): self._architectures[int(arm)].layers for arm in arms}}
        finals = self._final_states(embed(self._model, ids), 0, paths)
        norm = self._model.model.norm
        hidden = {arm: norm(final[:, :-1]).flatten(0, 1).split(CHUNK) for arm, final in finals.items()}
        scores: dict[int, list[torch.Tensor]] = {arm: [] for arm in hidden if arm >= 0}
        for index, labels in enumerate(ids[:, 1:].flatten().split(CHUNK)):
            parent_logits = logits_of(self._model, hidden[-1][index])
            for arm, parts in scores.items():
                logits = logits_of(self._model, hidden[arm][index], self._head(arm))
                parts.append(compare(logits, parent_logits, labels)[METRICS[self._metric]])
        return {arm: torch.cat(parts).unflatten(0, (len(ids), -1)).double().mean(1) for arm, parts in scores.items()}

    def _final_states(
        self, hidden: torch.Tensor, depth: int, paths: Mapping[int, tuple[LayerChoice, ...]]
    ) -> dict[int, torch.Tensor]:
        """Return the final hidden states of all paths, which share the layers below ``depth``."""
        if depth == len(decoder_layers(self._model)):
            return dict.fromkeys(paths, hidden)
        groups: dict[LayerChoice, dict[int, tuple[LayerChoice, ...]]] = {}
        for arm, path in paths.items():
            groups.setdefault(path[depth], {})[arm] = path
        finals = dict[int, torch.Tensor]()
        for choice, group in groups.items():
            self.layers_run, self.layers_asked = self.layers_run + 1, self.layers_asked + len(group)
            after = self._layer(depth, choice)(hidden, **self._contexts[depth])
            finals |= self._final_states(after, depth + 1, group)
        return finals

    def _layer(self, depth: int, choice: LayerChoice) -> nn.Module:
        if (depth, choice) not in self._layers:
            self._layers[depth, choice] = child_layer(self._model, depth, choice, self._library)
        return self._layers[depth, choice]

    def _head(self, arm: int) -> nn.Module:
        return self._heads[self._architectures[arm].head]

    def save(self) -> None:
        """Write the scores to the cache."""
        if self._cache is not None:
            with atomic_path(self._cache) as temporary, open(temporary, "wb") as stream:
                arrays = {name: getattr(self, name) for name in self.CACHED}
                np.savez(stream, identity=np.array(self._identity), **arrays)
            self._saved = time.monotonic()

    def _restore(self, cache: Path) -> None:
        try:
            with np.load(cache) as arrays:
                if str(arrays["identity"]) == self._identity and arrays["values"].shape == self.values.shape:
                    for name in self.CACHED:
                        setattr(self, name, arrays[name])
        except (OSError, ValueError, KeyError) as error:
            raise TangramError(f"{cache} is damaged ({error}); delete it to start the selection again") from error


def shared_layers(architectures: Sequence[Architecture]) -> float:
    """Return the share of layer passes that shared prefixes save if all candidates see every prompt."""
    layers = [architecture.layers for architecture in architectures]
    paths = [(LayerChoice(),) * len(layers[0]), *layers]
    run = {path[: depth + 1] for path in paths for depth in range(len(path))}
    return 1 - len(run) / sum(map(len, paths))


def layer_importance(
    model: PreTrainedModel, prompts: torch.Tensor, batch_size: int, cache: Path | None = None, identity: str = ""
) -> np.ndarray:
    """Return KL(parent || parent without the layer) of each layer on each prompt, ``(prompts, layers)``.

    Replace-1-block scores (Puzzle, section 4.2) of dropped layers, per prompt; the layers before the dropped one run
    once for all. Arguments are those of `CandidateScores`.
    """
    parent = (LayerChoice(),) * len(decoder_layers(model))
    dropped = (LayerChoice(NO_OP, NO_OP),)
    without = [Architecture(parent[:layer] + dropped + parent[layer + 1 :]) for layer in range(len(parent))]
    scores = CandidateScores(model, prompts, without, lambda *_: {}, "kl", batch_size, cache, identity)
    values = scores.look(np.arange(scores.arms), np.arange(scores.prompts))
    scores.save()
    return values.T
