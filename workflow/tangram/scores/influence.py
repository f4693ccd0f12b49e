"""Block influence (ShortGPT, arXiv 2403.03853): how much every layer changes the direction of the hidden states."""

from __future__ import annotations

import torch
from torch.nn import functional

from tangram.activations import Activations


@torch.inference_mode()
def block_influence(activations: Activations, num_layers: int) -> list[float]:
    """Return 1 - cos(input, output) of every layer, as mean over all tokens.

    Args:
        activations: the parent's hidden states of a text.
        num_layers: the parent's layers.
    """
    influence, before = [], activations.hidden(0).float()
    for layer in range(num_layers):
        after = activations.hidden(layer + 1).float()
        influence.append(1 - functional.cosine_similarity(before, after, dim=-1).double().mean().item())
        before = after
    return influence
