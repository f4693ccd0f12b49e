"""Phi-3 as Llama: the rows of its fused matrices, split into the matrices that a Llama multiplies one by one.

Both compute the same products, so the rewriting is exact. A parent whose attention has a window becomes a Mistral.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.errors import TangramError
from tangram.models.families import Shape
from tangram.models.loading import model_class

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

NOT_CARRIED = ("model_type", "architectures", "auto_map", "transformers_version", "resid_pdrop", "embd_pdrop")


def unfused(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model of a supported family that computes the same; the model itself unless its family is Phi-3.

    Raises:
        TangramError: the model rotates a part of each head only.
    """
    if model.config.model_type != "phi3":
        return model
    config, shape = _config(model.config), Shape.of(model.config)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        state |= {part: rows.clone() for part, rows in _split(name, tensor, shape)}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    build = model_class(config.model_type).from_pretrained
    converted: PreTrainedModel = build(None, config=config, state_dict=state, dtype=model.dtype).eval()
    converted.generation_config = model.generation_config
    return converted


def _config(source: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of the Llama, or of the Mistral for a source with a window."""
    from transformers import LlamaConfig, MistralConfig

    settings: dict[str, Any] = {k: v for k, v in source.to_dict().items() if k not in NOT_CARRIED}
    rope = dict(settings["rope_parameters"])
    if (share := rope.pop("partial_rotary_factor", 1.0)) != 1.0:
        raise TangramError(
            f"the parent rotates {share:g} of each head (partial_rotary_factor), which is not supported; "
            "take a phi3 that rotates whole heads, such as Phi-3-mini or Phi-4"
        )
    settings["rope_parameters"] = rope
    if settings.get("sliding_window") is not None:
        return MistralConfig(**settings)
    settings.pop("sliding_window", None)
    return LlamaConfig(**settings)


def _split(name: str, tensor: torch.Tensor, shape: Shape) -> list[tuple[str, torch.Tensor]]:
    """Return the matrices of a fused one, by name; other tensors stay."""
    prefix, _, module = name.removesuffix(".weight").rpartition(".")
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    fused = {
        "qkv_proj": (("q_proj", "k_proj", "v_proj"), [queries, keys, keys]),
        "gate_up_proj": (("gate_proj", "up_proj"), [shape.intermediate] * 2),
    }
    if module not in fused:
        return [(name, tensor)]
    names, rows = fused[module]
    return [(f"{prefix}.{part}.weight", matrix) for part, matrix in zip(names, tensor.split(rows), strict=True)]
