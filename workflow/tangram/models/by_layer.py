"""Models whose weights come layer by layer: for parents that are larger than a device."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from tangram.errors import TangramError
from tangram.models.families import decoder_layers
from tangram.models.loading import REMEDY, WEIGHTS, check_files, config_of, model_class, quieten

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def skeleton(folder: str | Path, dtype: str) -> PreTrainedModel:
    """Return a checkpoint's model without weights, for `fill`: on torch's `meta` device, sdpa attention, eval mode.

    Raises:
        TangramError: the checkpoint is missing or of an unknown family.
    """
    config = config_of(Path(folder))
    quieten()
    with torch.device("meta"):
        model = model_class(config.model_type)._from_config(
            config, attn_implementation="sdpa", dtype=getattr(torch, dtype)
        )
    return model.eval()


def fill(module: nn.Module, prefix: str, folder: str | Path, device: str, skip: tuple[str, ...] = ()) -> None:
    """Give a module of a `skeleton` its weights, and no other module.

    Args:
        module: the model, or a part of it.
        prefix: the part's name in the model, with a dot at its end; empty for the model.
        folder: the checkpoint, one safetensors file.
        device: where the weights go.
        skip: beginnings of names that stay empty.

    Raises:
        TangramError: the file is damaged or lacks a tensor.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, framework="pt", device=device) as stored:
            there = set(stored.keys())
            for name, parameter in list(module.named_parameters()):
                if f"{prefix}{name}" in there and not name.startswith(skip):
                    owner, _, leaf = name.rpartition(".")
                    tensor = stored.get_tensor(f"{prefix}{name}").to(parameter.dtype)
                    setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    except (OSError, SafetensorError) as error:
        raise TangramError(f"{path} cannot be read ({error}); {REMEDY}") from error


def load_by_layer(folder: str | Path, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """Load a parent whose layers take turns in memory: each is read when it is about to run, and the last one goes.

    For parents that are larger than a device. Layers are also brought in by `resident`.

    Raises:
        TangramError: see `load_model`.
    """
    folder = Path(folder)
    check_files(folder)
    model = skeleton(folder, dtype)
    fill(model, "", folder, device, skip=("model.layers.",))
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config).to(device)
    held: list[nn.Module] = []

    def bring(layer: nn.Module, index: int) -> None:
        if held and held[0] is layer:
            return
        while held:
            held.pop().to("meta")
        fill(layer, f"model.layers.{index}.", folder, device)
        held.append(layer)

    for index, layer in enumerate(decoder_layers(model)):
        layer.bring = functools.partial(bring, layer, index)  # type: ignore[assignment]
        layer.register_forward_pre_hook(lambda module, _: module.bring())
    return model.requires_grad_(False)


def resident(layer: nn.Module) -> nn.Module:
    """Return a decoder layer with its weights in memory; see `load_by_layer`."""
    if bring := getattr(layer, "bring", None):
        bring()
    return layer
