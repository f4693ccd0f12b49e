"""Token-wise metrics between a child's and its parent's predictions, and the standard error of their means."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

Head = Callable[[torch.Tensor], torch.Tensor]


def compare(child_logits: torch.Tensor, parent_logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compare two models' next-token predictions at the same positions, in float32.

    Args:
        child_logits: ``(positions, vocabulary)``.
        parent_logits: ``(positions, vocabulary)``.
        labels: the next tokens, ``(positions,)``.

    Returns:
        Tensors ``(positions,)``: ``kl``, KL(parent ‖ child) in nats; ``loss`` and ``parent_loss``, the cross entropies
        of the labels in nats; ``agreement``, 1 if the most likely tokens are equal, else 0.
    """
    child = functional.log_softmax(child_logits.float(), dim=-1)
    parent = functional.log_softmax(parent_logits.float(), dim=-1)
    return {
        "kl": (parent.exp() * (parent - child)).sum(-1),
        "loss": -child.gather(-1, labels[:, None]).squeeze(-1),
        "parent_loss": -parent.gather(-1, labels[:, None]).squeeze(-1),
        "agreement": (child.argmax(-1) == parent.argmax(-1)).float(),
    }


def compare_states(
    child_states: torch.Tensor,
    parent_states: torch.Tensor,
    child_logits: torch.Tensor,
    parent_logits: torch.Tensor,
    labels: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Return the tensors of `compare`, and two more ``(positions,)``.

    These are ``lm_loss_increase``, the difference of both losses in nats, and ``cosine_distance``, 1 less the cosine
    of the last hidden states after the final norm, ``(positions, hidden)``.
    """
    metrics = compare(child_logits, parent_logits, labels)
    cosine = functional.cosine_similarity(child_states.float(), parent_states.float(), dim=-1)
    return {**metrics, "lm_loss_increase": metrics["loss"] - metrics["parent_loss"], "cosine_distance": 1 - cosine}


def compare_in_chunks(
    child_hidden: torch.Tensor,
    parent_hidden: torch.Tensor,
    child_head: Head,
    parent_head: Head,
    labels: torch.Tensor,
    chunk: int = 256,
) -> dict[str, torch.Tensor]:
    """Compare two models from their final hidden states, with the logits of ``chunk`` positions in memory at a time.

    Args:
        child_hidden: hidden states after the final norm, ``(positions, hidden)``.
        parent_hidden: the parent's, of the same shape.
        child_head: the child's LM head, which maps hidden states to logits.
        parent_head: the parent's LM head.
        labels: the next tokens, ``(positions,)``.
        chunk: positions per chunk.

    Returns:
        The tensors of `compare`, for all positions.
    """
    parts = [
        compare(child_head(child), parent_head(parent), next_tokens)
        for child, parent, next_tokens in zip(
            child_hidden.split(chunk), parent_hidden.split(chunk), labels.split(chunk), strict=True
        )
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def standard_error_by_sequence(values: torch.Tensor) -> tuple[float, float]:
    """Return the mean of ``(sequences, positions)`` and its standard error over the sequences' means.

    Sequences are independent, but tokens of one sequence are not. The standard error of a single sequence is infinite.
    """
    means = values.double().mean(dim=1)
    if len(means) < 2:
        return means.mean().item(), math.inf
    return means.mean().item(), means.std(correction=1).item() / math.sqrt(len(means))
