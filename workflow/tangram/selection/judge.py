"""The parent as a judge: each child continues a prompt, and the parent votes for the likelier continuation.

A vote needs no reference and no instructions: children continue greedily, to equal length, and the continuation with
the lower negative log-likelihood per token under the parent wins. Only the order of two scores of one prompt is
meaningful.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch.nn import functional
from transformers import DynamicCache

from tangram.blocks.architecture import Architecture
from tangram.library.pieces import Library
from tangram.models.families import decoder_layers
from tangram.models.forward import embed, layer_contexts, logits_of
from tangram.selection.candidates import CHUNK, CandidateScores, not_finite

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class JudgedScores(CandidateScores):
    """A table of the parent's mean negative log-likelihood of each child's greedy continuation of each prompt.

    Continuations and their scores are cached, so that further votes on them are free.

    Args:
        model: the parent, which judges.
        prompts: token ids, ``(prompts, length)``, with a length of at least 2.
        architectures: the candidates' architectures.
        library: source of the candidates' pieces.
        continuation_tokens: length of every continuation; end-of-sequence tokens do not end one.
        batch_size: prompts per forward pass.
        cache: see `CandidateScores`.
        identity: see `CandidateScores`.
        checkpoint_seconds: see `CandidateScores`.
    """

    ordinal: bool = True
    CACHED: ClassVar[tuple[str, ...]] = ("values", "continuations")

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: torch.Tensor,
        architectures: Sequence[Architecture],
        library: Library,
        continuation_tokens: int,
        batch_size: int,
        cache: Path | None = None,
        identity: str = "",
        checkpoint_seconds: float = 60.0,
    ):
        self.continuations = np.full((len(architectures), len(prompts), continuation_tokens), -1)
        super().__init__(
            model, prompts, architectures, library, "judge", batch_size, cache, identity, checkpoint_seconds
        )
        with torch.inference_mode():
            ids = prompts.new_zeros(1, prompts.shape[1] + continuation_tokens).to(model.device)
            self._full_contexts = layer_contexts(model, embed(model, ids))
            causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=model.device).tril()
            for context in self._full_contexts:
                if context["attention_mask"] is None:  # SDPA's implicit causal mask is wrong after a cache
                    context["attention_mask"] = causal[None, None]

    def _measure(self, arms: np.ndarray, prompts: np.ndarray) -> dict[int, torch.Tensor]:
        """Return the parent's scores of each arm's continuations, ``(prompts,)``."""
        ids = self._tokens[torch.from_numpy(prompts)].to(self._model.device)
        judge, prompt_cache = decoder_layers(self._model), DynamicCache()
        self._advance(judge, ids[:, :-1], prompt_cache, 0)  # once for all arms
        scores = {}
        for arm in map(int, arms):
            continuation = self._continue(arm, ids)
            self.continuations[arm, prompts] = continuation.cpu().numpy()
            inputs = torch.cat([ids[:, -1:], continuation[:, :-1]], dim=1)
            hidden = self._advance(judge, inputs, copy.deepcopy(prompt_cache), ids.shape[1] - 1)
            parts = zip(hidden.flatten(0, 1).split(CHUNK), continuation.flatten().split(CHUNK), strict=True)
            losses = [
                functional.cross_entropy(logits_of(self._model, h).float(), t, reduction="none") for h, t in parts
            ]
            scores[arm] = torch.cat(losses).unflatten(0, continuation.shape).double().mean(1)
        return scores

    def _continue(self, arm: int, ids: torch.Tensor) -> torch.Tensor:
        """Return the greedy continuations of a candidate, ``(prompts, continuation_tokens)``."""
        layers = [self._layer(depth, choice) for depth, choice in enumerate(self._architectures[arm].layers)]
        cache, past, next_ids, steps = DynamicCache(), 0, ids, []
        for _ in range(self.continuations.shape[2]):
            hidden = self._advance(layers, next_ids, cache, past)
            if not hidden.isfinite().all():
                raise not_finite(arm)
            past += next_ids.shape[1]
            next_ids = logits_of(self._model, hidden[:, -1:], self._head(arm)).argmax(-1)
            steps.append(next_ids)
        return torch.cat(steps, dim=1)

    def _advance(self, layers: Iterable[nn.Module], ids: torch.Tensor, cache: DynamicCache, past: int) -> torch.Tensor:
        """Run tokens ``(prompts, n)`` that follow ``past`` cached ones; return their final states, normed."""
        hidden, span = embed(self._model, ids), slice(past, past + ids.shape[1])
        for layer, full in zip(layers, self._full_contexts, strict=True):
            cos, sin = full["position_embeddings"]
            hidden = layer(
                hidden,
                past_key_values=cache,
                attention_mask=full["attention_mask"][..., span, : span.stop],
                position_ids=full["position_ids"][:, span],
                position_embeddings=(cos[:, span], sin[:, span]),
            )
        return self._model.model.norm(hidden)
