"""The losses of blockwise (BLD) and end-to-end (GKD) distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tangram import extensions
from tangram.config import SpanContrast


def normalized_mse(child: torch.Tensor, parent: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the normalized squared error, per token, in float32.

    Puzzle (arXiv 2411.19146, section 3): ``MSE(o_p, o_c) / MSE(o_p, 0)``.

    Args:
        child: block outputs, ``(..., hidden)``.
        parent: block outputs, ``(..., hidden)``.
        scale: the divisor, a mean square, broadcastable to ``(...)``.
    """
    return (child.float() - parent.float()).square().mean(-1) / scale


def cosine_distance(child: torch.Tensor, parent: torch.Tensor) -> torch.Tensor:
    """Return ``1 - cos`` of hidden states ``(..., hidden)``, mean over tokens (Puzzle, section 4.3)."""
    return 1 - functional.cosine_similarity(child.float(), parent.float(), dim=-1).mean()


class _ChunkedKL(torch.autograd.Function):
    """KL and its gradient ``softmax(child) - softmax(parent)``, computed together, chunk by chunk.

    A chunk fits the processor's cache. Autograd would make eight passes over tensors of tokens × vocabulary, which take
    as long as the LM head on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, child_logits: torch.Tensor, parent_logits: torch.Tensor, chunk: int) -> torch.Tensor:
        gradient = torch.empty_like(child_logits)
        total = torch.zeros((), dtype=torch.float32, device=child_logits.device)
        parts = (tensor.split(chunk) for tensor in (child_logits, parent_logits, gradient))
        for child, parent, slot in zip(*parts, strict=True):
            child_log, parent_log = (
                functional.log_softmax(child.float(), -1),
                functional.log_softmax(parent.float(), -1),
            )
            probability = parent_log.exp()
            total += torch.dot(probability.flatten(), parent_log.sub_(child_log).flatten())
            slot.copy_(child_log.exp_().sub_(probability))
        ctx.save_for_backward(gradient)
        return total / len(child_logits)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(gradients[0] / len(gradient)), None, None


def kl_divergence(child_logits: torch.Tensor, parent_logits: torch.Tensor, chunk: int = 32) -> torch.Tensor:
    """Return KL(parent ‖ child) in nats, mean over tokens, differentiable (once) in the child's logits.

    Args:
        child_logits: ``(tokens, vocabulary)``.
        parent_logits: ``(tokens, vocabulary)``; no gradient flows into them.
        chunk: tokens per chunk.
    """
    return _ChunkedKL.apply(child_logits, parent_logits, chunk)


def span_loss(settings: SpanContrast, parent_hidden: torch.Tensor, tokens: torch.Tensor, seed: int) -> nn.Module:
    """Return the config's loss on spans of hidden states, which a package registers as `tangram.losses`.

    The returned module maps the child's and the parent's hidden states, ``(batch, length, hidden)``, and the sequences'
    indices, ``(batch,)``, to the unweighted loss. Its parameters are trained with the child's.

    Args:
        settings: config section `span_contrast`.
        parent_hidden: the parent's hidden states of all sequences, ``(sequences, length, hidden)``.
        tokens: ``(sequences, length)``.
        seed: seed of the loss's random draws.

    Raises:
        TangramError: no installed package registers the loss.
    """
    loss: nn.Module = extensions.load("tangram.losses", settings.loss)(settings, parent_hidden, tokens, seed)
    return loss
