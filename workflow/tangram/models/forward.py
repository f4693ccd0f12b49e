"""The arguments with which a single decoder layer is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tangram.models.families import window_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layer_context(model: PreTrainedModel, hidden: torch.Tensor) -> dict[str, Any]:
    """Return the keyword arguments of a decoder layer for full unpadded sequences ``(batch, length, hidden)``.

    The mask and the rotary tables depend on the shape alone, so all layers and all batches share them.
    """
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    build_mask = create_causal_mask if window_of(model.config) is None else create_sliding_window_causal_mask
    mask = build_mask(
        config=model.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None, position_ids=positions
    )
    embeddings = model.model.rotary_emb(hidden, position_ids=positions)
    return {"attention_mask": mask, "position_ids": positions, "position_embeddings": embeddings}
