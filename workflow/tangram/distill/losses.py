"""The losses of blockwise (BLD) and end-to-end (GKD) distillation."""

from __future__ import annotations

import torch
from torch.nn import functional


def normalised_mse(child: torch.Tensor, parent: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the normalised squared error, per token, in float32.

    Puzzle (arXiv 2411.19146, section 3): ``MSE(o_p, o_c) / MSE(o_p, 0)``.

    Args:
        child: block outputs, ``(..., hidden)``.
        parent: block outputs, ``(..., hidden)``.
        scale: mean square to divide by, broadcastable to ``(...)``.
    """
    return (child.float() - parent.float()).square().mean(-1) / scale


def cosine_distance(child: torch.Tensor, parent: torch.Tensor) -> torch.Tensor:
    """Return ``1 - cos`` of hidden states ``(..., hidden)``, mean over tokens (Puzzle, section 4.3)."""
    return 1 - functional.cosine_similarity(child.float(), parent.float(), dim=-1).mean()


def kl_divergence(child_logits: torch.Tensor, parent_logits: torch.Tensor) -> torch.Tensor:
    """Return KL(parent ‖ child) in nats, mean over tokens; both logits are ``(tokens, vocabulary)``."""
    return functional.kl_div(
        functional.log_softmax(child_logits.float(), dim=-1),
        functional.log_softmax(parent_logits.float(), dim=-1),
        reduction="batchmean",
        log_target=True,
    )
