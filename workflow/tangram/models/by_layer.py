"""Models that hold the weights of one layer at a time, for parents larger than the device's memory."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tangram.errors import TangramError
from tangram.models.families import decoder_layers
from tangram.models.loading import REMEDY, WEIGHTS, attention_of, check_files, config_of, model_class, quieten

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def meta_model(folder: str | Path, dtype: str) -> PreTrainedModel:
    """Return a checkpoint's model on torch's `meta` device, without weights, in evaluation mode.

    Raises:
        TangramError: the checkpoint is missing or of an unknown family.
    """
    config = config_of(Path(folder))
    quieten()
    with torch.device("meta"):
        model = model_class(config.model_type)._from_config(
            config, attn_implementation=attention_of(config), dtype=getattr(torch, dtype)
        )
    return model.eval()


def load_weights(module: nn.Module, prefix: str, folder: str | Path, device: str, skip: tuple[str, ...] = ()) -> None:
    """Load the weights of one module of a `meta_model`.

    Args:
        module: the model, or a submodule of it.
        prefix: the submodule's name in the model, with a dot at its end; empty for the model.
        folder: the checkpoint, one safetensors file.
        device: device of the loaded weights.
        skip: prefixes of the parameters that are not loaded.

    Raises:
        TangramError: the file is damaged or lacks a tensor.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, framework="pt", device=device) as stored:
            stored_names = set(stored.keys())
            for name, parameter in list(module.named_parameters()):
                if f"{prefix}{name}" in stored_names and not name.startswith(skip):
                    owner, _, leaf = name.rpartition(".")
                    tensor = stored.get_tensor(f"{prefix}{name}").to(parameter.dtype)
                    setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    except (OSError, SafetensorError) as error:
        raise TangramError(f"{path} cannot be read ({error}); {REMEDY}") from error


def rebuild_buffers(model: Any, device: str) -> None:
    """Compute the buffers that no checkpoint holds: the rotary frequencies, and the factor of Gemma's embedding."""
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config).to(device)
    embedding = model.model.embed_tokens
    if hasattr(embedding, "embed_scale"):
        embedding.embed_scale = torch.tensor(embedding.scalar_embed_scale, device=device)


def load_by_layer(folder: str | Path, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """Load a parent that holds one layer's weights at a time: running a layer loads it and drops the previous one.

    `materialize` loads a layer without running it.

    Raises:
        TangramError: see `load_model`.
    """
    folder = Path(folder)
    check_files(folder)
    model = meta_model(folder, dtype)
    load_weights(model, "", folder, device, skip=("model.layers.",))
    model.tie_weights()
    rebuild_buffers(model, device)
    loaded: list[nn.Module] = []  # at most one

    def materialize_only(layer: nn.Module, index: int) -> None:
        if loaded and loaded[0] is layer:
            return
        while loaded:
            loaded.pop().to("meta")
        load_weights(layer, f"model.layers.{index}.", folder, device)
        loaded.append(layer)

    for index, layer in enumerate(decoder_layers(model)):
        layer.materialize = functools.partial(materialize_only, layer, index)  # type: ignore[assignment]
        layer.register_forward_pre_hook(lambda module, _: module.materialize())
    return model.requires_grad_(False)


def materialize(layer: nn.Module) -> nn.Module:
    """Load the weights of a decoder layer from `load_by_layer` and return it; a no-op for a layer in memory."""
    if load := getattr(layer, "materialize", None):
        load()
    return layer
