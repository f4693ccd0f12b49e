"""The library on disk: safetensors files by kind, variant and shard of layers, read piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch

from tangram.blocks.base import HEAD, HEAD_SHARD, PAIR
from tangram.errors import TangramError
from tangram.files import check_tensors
from tangram.models.families import SUBBLOCK_NAMES

State: TypeAlias = Mapping[str, torch.Tensor]
# Maps kind, variant (or pair) and layer to tensors by name in the subblock.
Library: TypeAlias = Callable[[str, str, int], State]


def tensor_name(layer: int, kind: str, name: str) -> str:
    """Return a subblock tensor's full name in a checkpoint, e.g. ``model.layers.7.mlp.up_proj.weight``.

    The head's tensors are ``lm_head.weight``, …, whatever the layer.
    """
    return f"lm_head.{name}" if kind == HEAD else f"model.layers.{layer}.{SUBBLOCK_NAMES[kind]}.{name}"


def read_piece(path: str | Path, layer: int, kind: str) -> dict[str, torch.Tensor]:
    """Read one layer's subblock tensors, or the head's, from a library shard, by their names inside the subblock.

    Raises:
        TangramError: the shard is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    prefix = tensor_name(layer, kind, "")
    check_tensors(path)
    try:
        with safe_open(path, framework="pt") as shard:
            names = [name for name in shard.keys() if name.startswith(prefix)]  # noqa: SIM118 (it is not a dict)
            return {name.removeprefix(prefix): shard.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise TangramError(f"{path} cannot be read ({error}); delete it and run again: it is rebuilt") from error


def read_library(folder: str | Path, shards: tuple[str, ...]) -> Library:
    """Return the library under ``folder``, read piece by piece from ``{kind}/{variant}/{shard}.safetensors``.

    The subblocks of a pair such as ``gqa-1+width-0.5`` are in ``block/{pair}/{shard}.safetensors``.

    Args:
        folder: the library.
        shards: ranges of layers, such as ``("00-14", "15-29")``; the head has one shard of its own.
    """

    def piece(kind: str, variant: str, layer: int) -> State:
        return read_piece(shard_file(folder, shards, kind, variant, layer), layer, kind)

    return piece


def shard_file(folder: str | Path, shards: tuple[str, ...], kind: str, variant: str, layer: int) -> Path:
    """Return the library file that holds a piece, or a subblock of a pair.

    Raises:
        TangramError: no shard contains the layer.
    """
    if kind == HEAD:
        return Path(folder) / kind / variant / f"{HEAD_SHARD}.safetensors"
    for shard in shards:
        first, last = (int(part) for part in shard.split("-"))
        if first <= layer <= last:
            return Path(folder) / (PAIR if "+" in variant else kind) / variant / f"{shard}.safetensors"
    raise TangramError(f"library: no shard of {', '.join(shards)} covers layer {layer}; name all shards")
