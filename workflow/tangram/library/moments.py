"""Moments of activations on disk: one safetensors file per kind of subblock and shard of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch

from tangram.blocks.moments import Moments
from tangram.errors import TangramError
from tangram.files import check_tensors, write_tensors

OfLayer: TypeAlias = Callable[[int], Moments | None]


def write_moments(path: str | Path, moments: Mapping[int, Moments], metadata: Mapping[str, str]) -> None:
    """Write the moments of some layers, in float32."""
    tensors = {f"{layer}.{name}": t for layer, of_layer in moments.items() for name, t in of_layer.tensors().items()}
    write_tensors(path, tensors, metadata)


def read_moments(path: str | Path | None, device: torch.device | str = "cpu") -> OfLayer:
    """Return a function that reads one layer's moments; without a file it returns None.

    Raises:
        TangramError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if path is None:
        return lambda layer: None
    check_tensors(path)

    def of_layer(layer: int) -> Moments:
        prefix = f"{layer}."
        try:
            with safe_open(path, framework="pt") as stored:
                names = [name for name in stored.keys() if name.startswith(prefix)]  # noqa: SIM118 (it is not a dict)
                tensors = {name.removeprefix(prefix): stored.get_tensor(name) for name in names}
                return Moments.from_tensors(tensors, device)
        except (OSError, SafetensorError, KeyError) as error:
            raise TangramError(f"{path} cannot be read ({error}); delete it and run again: it is rebuilt") from error

    return of_layer
