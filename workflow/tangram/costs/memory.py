"""Memory of a model's parts: parameters and KV cache, counted on the modules themselves.

A model needs ``Σ parameter bytes + batch · (prefill + generate) · Σ KV bytes per token``.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters; tied ones count once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def kv_bytes_per_token(layer: Any) -> int:
    """Return the bytes that a decoder layer adds to the KV cache per token and sequence.

    That is ``2 · KV heads · head_dim · bytes per element``, and nothing where a linear map or a no-op stands in.
    """
    projections = [getattr(layer.self_attn, name, None) for name in ("k_proj", "v_proj")]
    return sum(p.out_features * p.weight.element_size() for p in projections if p is not None)
