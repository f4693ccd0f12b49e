"""The parent as a judge: each child continues a prompt, and the parent votes for what it finds likelier.

A vote asks for no reference and no instructions: greedy continuations of equal length are read by the parent, and less
negative log-likelihood per token wins. Readings of one prompt may be compared; how far apart they are means nothing.
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
from tangram.models.forward import layer_context
from tangram.selection.candidates import CHUNK, CandidateScores, not_finite

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class JudgedScores(CandidateScores):
    """A table of readings: the parent's mean negative log-likelihood of a child's greedy continuation of a prompt.

    A continuation and its reading are kept, so that a second vote on either is free.

    Args:
        model: the parent, who judges.
        prompts: their tokens, ``(prompts, length)``, at least two each.
        architectures: the candidates.
        library: where their pieces come from.
        continuation_tokens: written after every prompt; nothing ends earlier, so that all are equally long.
        batch_size: prompts per forward pass.
        cache: see `CandidateScores`.
        identity: see `CandidateScores`.
        checkpoint_seconds: see `CandidateScores`.
    """

    ordinal: bool = True
    KEPT: ClassVar[tuple[str, ...]] = ("values", "continuations")

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
            whole = prompts.new_zeros(1, prompts.shape[1] + continuation_tokens).to(model.device)
            self._whole = layer_context(model, model.model.embed_tokens(whole))
            if self._whole["attention_mask"] is None:  # plain causal: SDPA says so itself, but not after a cache
                causal = torch.ones(whole.shape[1], whole.shape[1], dtype=torch.bool, device=model.device).tril()
                self._whole["attention_mask"] = causal[None, None]

    def _measure(self, arms: np.ndarray, prompts: np.ndarray) -> dict[int, torch.Tensor]:
        """Return the parent's readings of each arm's continuations, ``(prompts,)``."""
        ids = self._tokens[torch.from_numpy(prompts)].to(self._model.device)
        judge, read = decoder_layers(self._model), DynamicCache()
        self._advance(judge, ids[:, :-1], read, 0)  # the prompt is read once for all
        found = {}
        for arm in map(int, arms):
            written = self._continue(arm, ids)
            self.continuations[arm, prompts] = written.cpu().numpy()
            before = torch.cat([ids[:, -1:], written[:, :-1]], dim=1)
            hidden = self._advance(judge, before, copy.deepcopy(read), ids.shape[1] - 1)
            parts = zip(hidden.flatten(0, 1).split(CHUNK), written.flatten().split(CHUNK), strict=True)
            losses = [functional.cross_entropy(self._model.lm_head(h).float(), t, reduction="none") for h, t in parts]
            found[arm] = torch.cat(losses).unflatten(0, written.shape).double().mean(1)
        return found

    def _continue(self, arm: int, ids: torch.Tensor) -> torch.Tensor:
        """Return the likeliest tokens one after another, ``(prompts, continuation_tokens)``."""
        layers = [self._layer(depth, choice) for depth, choice in enumerate(self._architectures[arm])]
        cache, seen, following, written = DynamicCache(), 0, ids, []
        for _ in range(self.continuations.shape[2]):
            hidden = self._advance(layers, following, cache, seen)
            if not hidden.isfinite().all():
                raise not_finite(arm)
            seen += following.shape[1]
            following = self._model.lm_head(hidden[:, -1:]).argmax(-1)
            written.append(following)
        return torch.cat(written, dim=1)

    def _advance(self, layers: Iterable[nn.Module], ids: torch.Tensor, cache: DynamicCache, seen: int) -> torch.Tensor:
        """Run tokens ``(prompts, n)`` that follow ``seen`` cached ones; return their final states, normed."""
        hidden, now = self._model.model.embed_tokens(ids), slice(seen, seen + ids.shape[1])
        mask, (cos, sin) = self._whole["attention_mask"], self._whole["position_embeddings"]
        context = {
            "attention_mask": mask[..., now, : now.stop],
            "position_ids": self._whole["position_ids"][:, now],
            "position_embeddings": (cos[:, now], sin[:, now]),
        }
        for layer in layers:
            hidden = layer(hidden, past_key_values=cache, **context)
        return self._model.model.norm(hidden)
