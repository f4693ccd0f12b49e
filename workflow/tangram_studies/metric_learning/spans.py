"""Span-contrastive distillation: a child's span must be nearer the parent's of the same span than of other spans.

Spatial contrasting (arXiv 1610.00243) with spans of tokens for regions and the parent for the second view, as its
conclusion proposes for sequences; close to CRD (arXiv 1910.10699) with a batch's own negatives.
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
    """Return which pairs of spans cannot be told apart fairly: those that overlap, and those of the same tokens.

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
    """Return the cross-entropy of finding each child's span among the parent's by its angle, in nats, mean over spans.

    Args:
        child: ``(spans, d)``.
        parent: of the same spans in the same order, ``(spans, d)``.
        excluded: pairs that are not contrasted, ``(spans, spans)``; the diagonal always is.
        temperature: divides the cosines.
    """
    cosines = functional.normalize(child.float(), dim=-1) @ functional.normalize(parent.float(), dim=-1).T
    own = torch.eye(len(child), dtype=torch.bool, device=child.device)
    logits = (cosines / temperature).masked_fill(excluded.to(child.device) & ~own, -torch.inf)
    return functional.cross_entropy(logits, torch.arange(len(child), device=child.device))


class SpanTerm(nn.Module):
    """The term at one layer.

    Hidden states are standardized per dimension by the parent's own mean and deviation before anything else: without
    that, a few massive dimensions make all spans look alike. With ``settings.projection``, the child's go through a
    head that learns, the parent's through a fixed random one; the head starts as that, and nobody keeps it.

    Args:
        settings: config section `span_contrast`.
        parent_hidden: the parent's hidden states of all sequences, ``(sequences, length, hidden)``.
        tokens: ``(sequences, length)``.
        seed: of the spans and of the fixed projection.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    fixed: torch.Tensor

    def __init__(self, settings: SpanContrast, parent_hidden: torch.Tensor, tokens: torch.Tensor, seed: int):
        super().__init__()
        self.settings, self.tokens, self.seed = settings, tokens.cpu(), seed
        later = parent_hidden[:, 1:].detach().float().flatten(0, 1)
        self.register_buffer("mean", later.mean(0))
        self.register_buffer("deviation", later.std(0).clamp_min(1e-6))
        self.head: nn.Linear | None = None
        if settings.projection:
            size = later.shape[1]
            generator = torch.Generator().manual_seed(seed)
            fixed = torch.randn(settings.projection, size, generator=generator) / size**0.5
            self.register_buffer("fixed", fixed.to(later.device))
            self.head = nn.Linear(size, settings.projection, bias=False, device=later.device)
            with torch.no_grad():
                self.head.weight.copy_(self.fixed)

    def forward(self, child: torch.Tensor, parent: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
        """Return the loss of some sequences, not yet weighted, in nats.

        The spans follow from the seed and the sequences alone, so that a resumed training sees the same.

        Args:
            child: the child's hidden states, ``(batch, length, hidden)``.
            parent: the parent's, ``(batch, length, hidden)``.
            sequences: their indices, ``(batch,)``.
        """
        spans, pooled_child, pooled_parent = self.pooled(child, parent, sequences)
        excluded = confusable(spans, self.tokens[sequences.cpu()])
        if self.head is not None:
            pooled_child, pooled_parent = self.head(pooled_child), pooled_parent @ self.fixed.T
        return span_contrastive_loss(pooled_child, pooled_parent, excluded, self.settings.temperature)

    def pooled(
        self, child: torch.Tensor, parent: torch.Tensor, sequences: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return spans ``(spans, 3)``, and their standardized means in child and parent, ``(spans, hidden)``."""
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
    """Settings that ask for `PulledSpans`."""

    loss: ClassVar[str] = "pulled_spans"


class PulledSpans(SpanTerm):
    """The control: the same spans, standardized alike, each drawn to the parent's own, and contrasted with none."""

    def forward(self, child: torch.Tensor, parent: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
        """Return one minus the cosine of child's and parent's spans, mean over spans; see `SpanTerm.forward`."""
        _, one, other = self.pooled(child, parent, sequences)
        return cosine_distance(one, other)
