"""What a child is made of: one variant per layer and kind, as JSON and as transformers' `per_layer_config`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tangram.blocks import PARENT, get_block
from tangram.errors import TangramError
from tangram.families import Shape
from tangram.files import write_text


@dataclass(frozen=True)
class LayerChoice:
    """The variants of one layer."""

    attention: str = PARENT
    ffn: str = PARENT


Architecture = tuple[LayerChoice, ...]


def save_architecture(architecture: Architecture, path: str | Path) -> None:
    """Write an architecture as small, deterministic JSON: equal choices give equal bytes."""
    layers = [{"attention": choice.attention, "ffn": choice.ffn} for choice in architecture]
    lines = ",\n  ".join(json.dumps(layer) for layer in layers)
    write_text(path, f'{{"layers": [\n  {lines}\n]}}\n')


def load_architecture(path: str | Path) -> Architecture:
    """Read an architecture back.

    Raises:
        TangramError: the file is missing or not an architecture.
    """
    try:
        return tuple(LayerChoice(**layer) for layer in json.loads(Path(path).read_text())["layers"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TangramError(f"{path} is not an architecture ({error}); delete it and run again") from error


def per_layer_config(architecture: Architecture, shape: Shape) -> dict[int, dict[str, Any]]:
    """Return transformers' `per_layer_config` of an architecture: only layers that differ from the parent."""
    overrides: dict[int, dict[str, Any]] = {}
    for layer, choice in enumerate(architecture):
        merged: dict[str, Any] = {}
        for kind in ("attention", "ffn"):
            for key, value in get_block(kind, getattr(choice, kind)).overrides(shape).items():
                merged[key] = [*merged.get(key, []), *value] if isinstance(value, list) else value
        if merged:
            overrides[layer] = merged
    return overrides
