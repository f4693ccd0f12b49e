"""Memory of a model's parts: parameters, their bytes, and bytes of the KV cache, read from the modules.

A model needs ``Σ parameter bytes + batch · (prefill + generate) · Σ KV bytes per token``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tangram.models.layouts import layout_of


def stored_tensors(module: nn.Module) -> list[torch.Tensor]:
    """Return a module's stored tensors; tied weights appear once."""
    return list({tensor.data_ptr(): tensor for tensor in module.state_dict(keep_vars=True).values()}.values())


def parameters(module: nn.Module) -> int:
    """Return the number of a module's stored weights, scales of int8 matrices included; tied weights count once."""
    return sum(tensor.numel() for tensor in stored_tensors(module))


def parameter_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's stored tensors, each in its own precision; tied weights count once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in stored_tensors(module))


def kv_bytes_per_token(layer: Any) -> int:
    """Return the bytes that a decoder layer adds to the KV cache per token and sequence.

    That is ``2 · KV heads · head_dim · bytes per element`` for attention, and 0 for a linear map or a no-op. The cache
    has the dtype of the residual stream, whatever the precision of the projections.
    """
    projections = [getattr(layer.self_attn, name, None) for name in ("k_proj", "v_proj")]
    norm = layout_of(layer).attention.norms[0]
    return sum(p.out_features * getattr(layer, norm).weight.element_size() for p in projections if p is not None)
