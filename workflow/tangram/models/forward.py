"""The parts of a model's forward pass around its decoder layers: embedding, arguments of a layer, logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tangram.models.families import SLIDING, attention_types

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def embed(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return the input of the first layer, ``(batch, length, hidden)``, for tokens ``(batch, length)``."""
    embedded: torch.Tensor = model.model.embed_tokens(tokens)
    multiplier = getattr(model.model, "embedding_multiplier", 1)  # Granite's; Gemma's is a part of its embedding
    return embedded if multiplier == 1 else embedded * multiplier


def logits_of(model: Any, normed: torch.Tensor, head: nn.Module | None = None) -> torch.Tensor:
    """Return the logits that a model computes from its last hidden states after the final norm.

    Args:
        model: a causal language model.
        normed: ``(..., hidden)``.
        head: the LM head; the model's by default.
    """
    logits: torch.Tensor = (head or model.lm_head)(normed)
    scaling = getattr(model.config, "logits_scaling", 1)  # Granite
    cap = getattr(model.config, "final_logit_softcapping", None)  # Gemma
    logits = logits if scaling == 1 else logits / scaling
    return logits if cap is None else torch.tanh(logits / cap) * cap


def layer_contexts(model: PreTrainedModel, hidden: torch.Tensor) -> list[dict[str, Any]]:
    """Return the keyword arguments of every decoder layer for full unpadded sequences ``(batch, length, hidden)``.

    Masks and rotary tables depend on the shape and on the layer's type of attention, so all batches share them, and all
    layers of one type.
    """
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    config: Any = model.config
    positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    types, contexts = attention_types(config), dict[str, dict[str, Any]]()
    for kind in set(types):
        build_mask = create_sliding_window_causal_mask if kind == SLIDING else create_causal_mask
        mask = build_mask(
            config=config, inputs_embeds=hidden, attention_mask=None, past_key_values=None, position_ids=positions
        )
        bases = (
            (kind,) if kind in (config.rope_parameters or {}) else ()
        )  # Gemma 3 has rotary tables of its own for each type
        embeddings = model.model.rotary_emb(hidden, positions, *bases)
        contexts[kind] = {"attention_mask": mask, "position_ids": positions, "position_embeddings": embeddings}
    return [contexts[kind] for kind in types]
