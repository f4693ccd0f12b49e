"""Memory of a model's parts: bytes of parameters and of the KV cache, read from the modules.

A model needs ``Σ parameter bytes + batch · (prefill + generate) · Σ KV bytes per token``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from tangram.models.operators import StructuredLinear


def parameter_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's weights, including untrained factors; tied weights count once."""
    fixed = [buffer for part in module.modules() if isinstance(part, StructuredLinear) for buffer in part.buffers()]
    return sum(weight.numel() * weight.element_size() for weight in (*module.parameters(), *fixed))


def kv_bytes_per_token(layer: Any) -> int:
    """Return the bytes that a decoder layer adds to the KV cache per token and sequence.

    That is ``2 · KV heads · head_dim · bytes per element`` for attention, and 0 for a linear map or a no-op.
    """
    projections = [getattr(layer.self_attn, name, None) for name in ("k_proj", "v_proj")]
    return sum(p.out_features * next(p.parameters()).element_size() for p in projections if p is not None)
