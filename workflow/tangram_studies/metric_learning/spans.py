"""Span-contrastive distillation: a child's span must be nearer to the parent's same span than to its other spans.

This is spatial contrasting (arXiv 1610.00243) with spans of tokens in place of regions and the parent in place of the
second view, as its conclusion proposes for sequences. It is close to CRD (arXiv 1910.10699) with in-batch negatives.
"""

from __future__ import annotations

import zlib
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from tangram.config import SpanContrast
from tangram.training.losses import cosine_distance
from tangram_studies.metric_learning.samplers import sample_spans


def pool_spans(hidden: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    """Return the mean hidden state of every span.

    Args:
        hidden: ``(sequences, length, hidden)``.
        spans: rows (sequence, first token, token after the last), ``(spans, 3)``.

    Returns:
        ``(spans, hidden)``.
    """
    sequence, start, end = spans.to(hidden.device).unbind(1)
    place = torch.arange(hidden.shape[1], device=hidden.device)
    inside = (place >= start[:, None]) & (place < end[:, None])
    weights = inside.to(hidden.dtype) / (end - start)[:, None]
    return torch.einsum("st,sth->sh", weights, hidden[sequence])


def confusable(spans: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return which pairs of spans must not be contrasted: spans that overlap, and spans of the same tokens.

    Args:
        spans: ``(spans, 3)``; see `pool_spans`.
        tokens: ``(sequences, length)``.

    Returns:
        Bool ``(spans, spans)``, true on the diagonal.
    """
    sequence, start, end = spans.unbind(1)
    overlap = (sequence[:, None] == sequence) & (start[:, None] < end) & (start < end[:, None])
    texts = [tuple(tokens[s, a:b].tolist()) for s, a, b in spans.tolist()]
    numbers = {text: i for i, text in enumerate(texts)}
    text = torch.tensor([numbers[text] for text in texts])
    return overlap | (text[:, None] == text)


def span_contrastive_loss(
    child: torch.Tensor, parent: torch.Tensor, excluded: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return the InfoNCE loss of child spans against parent spans by cosine similarity, in nats, mean over spans.

    Args:
        child: pooled states of the child, ``(spans, d)``.
        parent: pooled states of the parent for the same spans, ``(spans, d)``.
        excluded: pairs that are not contrasted, bool, ``(spans, spans)``; the diagonal is contrasted regardless.
        temperature: divisor of the cosines.
    """
    cosines = functional.normalize(child.float(), dim=-1) @ functional.normalize(parent.float(), dim=-1).T
    diagonal = torch.eye(len(child), dtype=torch.bool, device=child.device)
    logits = (cosines / temperature).masked_fill(excluded.to(child.device) & ~diagonal, -torch.inf)
    return functional.cross_entropy(logits, torch.arange(len(child), device=child.device))


class SpanTerm(nn.Module):
    """The span-contrastive loss at one layer.

    Hidden states are first standardized per dimension by the parent's mean and standard deviation: otherwise a few
    massive dimensions make all spans similar. With ``settings.projection``, a fixed random projection maps the
    parent's spans, and a trainable one maps the child's: it is initialized to the fixed one and dropped after training.

    Args:
        settings: config section `span_contrast`.
        parent_hidden: the parent's hidden states of all sequences, ``(sequences, length, hidden)``.
        tokens: token ids of all sequences, ``(sequences, length)``.
        seed: seed of the spans and of the fixed projection.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    fixed: torch.Tensor

    def __init__(self, settings: SpanContrast, parent_hidden: torch.Tensor, tokens: torch.Tensor, seed: int):
        super().__init__()
        self.settings, self.tokens, self.seed = settings, tokens.cpu(), seed
        states = parent_hidden[:, 1:].detach().float().flatten(0, 1)
        self.register_buffer("mean", states.mean(0))
        self.register_buffer("deviation", states.std(0).clamp_min(1e-6))
        self.head: nn.Linear | None = None
        if settings.projection:
            size = states.shape[1]
            generator = torch.Generator().manual_seed(seed)
            fixed = torch.randn(settings.projection, size, generator=generator) / size**0.5
            self.register_buffer("fixed", fixed.to(states.device))
            self.head = nn.Linear(size, settings.projection, bias=False, device=states.device)
            with torch.no_grad():
                self.head.weight.copy_(self.fixed)

    def forward(self, child: torch.Tensor, parent: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
        """Return the unweighted loss of some sequences, in nats.

        The spans depend on the seed and the sequences only, so that a resumed training draws the same.

        Args:
            child: the child's hidden states, ``(batch, length, hidden)``.
            parent: the parent's hidden states, ``(batch, length, hidden)``.
            sequences: indices of the sequences, ``(batch,)``.
        """
        spans, pooled_child, pooled_parent = self.pooled(child, parent, sequences)
        excluded = confusable(spans, self.tokens[sequences.cpu()])
        if self.head is not None:
            pooled_child, pooled_parent = self.head(pooled_child), pooled_parent @ self.fixed.T
        return span_contrastive_loss(pooled_child, pooled_parent, excluded, self.settings.temperature)

    def pooled(
        self, child: torch.Tensor, parent: torch.Tensor, sequences: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return spans ``(spans, 3)`` and their standardized means in child and parent, each ``(spans, hidden)``."""
        settings = self.settings
        seed = zlib.crc32(repr([self.seed, *sequences.tolist()]).encode())
        generator = torch.Generator().manual_seed(seed)
        sizes = settings.spans, settings.shortest, settings.longest
        spans = sample_spans(len(sequences), child.shape[1], *sizes, generator)
        of_child, of_parent = (
            (pool_spans(hidden.float(), spans) - self.mean) / self.deviation for hidden in (child, parent.detach())
        )
        return spans, of_child, of_parent


class PulledSpanContrast(SpanContrast):
    """Settings of `PulledSpans`."""

    loss: ClassVar[str] = "pulled_spans"


class PulledSpans(SpanTerm):
    """The control: the same standardized spans, each trained towards the parent's same span, without negatives."""

    def forward(self, child: torch.Tensor, parent: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
        """Return one minus the cosine of child's and parent's spans, mean over spans; see `SpanTerm.forward`."""
        _, pooled_child, pooled_parent = self.pooled(child, parent, sequences)
        return cosine_distance(pooled_child, pooled_parent)
