"""Architectures: one variant per layer and kind, as JSON and as transformers' `per_layer_config`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangram.blocks.base import KINDS, PARENT
from tangram.blocks.registry import get_block, modules_of_variants
from tangram.errors import TangramError
from tangram.files import write_text
from tangram.models.families import CHILD_PREFIX, Shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# A stock model can be built if all layers have equal overrides and change only these attributes.
STOCK_ATTRIBUTES = {"num_key_value_heads", "intermediate_size"}


@dataclass(frozen=True)
class LayerChoice:
    """The variants of one layer."""

    attention: str = PARENT
    ffn: str = PARENT

    @classmethod
    def parse(cls, pair: str) -> LayerChoice:
        """Parse the names of both variants, such as ``gqa-1+width-0.5``."""
        return cls(*pair.split("+", 1))


Architecture = tuple[LayerChoice, ...]


def layers_of(architecture: Architecture) -> list[dict[str, str]]:
    """Return an architecture in the form of its JSON: every layer's variants by kind."""
    return [asdict(choice) for choice in architecture]


def from_layers(layers: Iterable[Mapping[str, str]]) -> Architecture:
    """Return the architecture from the form of `layers_of`."""
    return tuple(LayerChoice(**layer) for layer in layers)


def pinned(architecture: Architecture, sha256: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of an `architecture.json`: its layers, and the checksum of each piece from the library."""
    return {"layers": layers_of(architecture), "sha256": dict(sha256)}


def modules_of(*architectures: Architecture) -> list[str]:
    """Return the modules that define the variants of architectures, for `provenance.code_hash`."""
    choices = {choice for architecture in architectures for choice in architecture}
    return modules_of_variants(getattr(choice, kind) for choice in choices for kind in KINDS)


def save_architecture(architecture: Architecture, sha256: Mapping[str, str], path: str | Path) -> None:
    """Write an `architecture.json`; equal architectures with equal pieces give equal bytes."""
    write_text(path, json.dumps(pinned(architecture, sha256), indent=1, sort_keys=True) + "\n")


def load_architecture(path: str | Path) -> Architecture:
    """Read an architecture back.

    Raises:
        TangramError: the file is missing or not an architecture.
    """
    try:
        return from_layers(json.loads(Path(path).read_text())["layers"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TangramError(f"{path} is not an architecture ({error}); delete it and run again") from error


def variants_in(path: str | Path) -> set[str]:
    """Return the variants in a file of one architecture, or of several candidates.

    Raises:
        TangramError: the file is missing or holds no architecture.
    """
    try:
        content = json.loads(Path(path).read_text())
        entries = content.get("candidates", [content])
        return {layer[kind] for entry in entries for layer in entry["layers"] for kind in KINDS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TangramError(f"{path} holds no architecture ({error}); delete it and run again") from error


def per_layer_config(architecture: Architecture, shape: Shape) -> dict[int, dict[str, Any]]:
    """Return transformers' `per_layer_config` of an architecture: entries of layers that differ from the parent."""
    overrides: dict[int, dict[str, Any]] = {}
    for layer, choice in enumerate(architecture):
        merged: dict[str, Any] = {}
        for kind in KINDS:
            for key, value in get_block(kind, getattr(choice, kind), shape).entries().items():
                merged[key] = [*merged.get(key, []), *value] if isinstance(value, list) else value
        if merged:
            overrides[layer] = merged
    return overrides


def stock_overrides(architecture: Architecture, shape: Shape) -> dict[str, Any] | None:
    """Return the changes of a stock config that describe an architecture; None if no stock model can compute it."""
    overrides = per_layer_config(architecture, shape)
    layers = [overrides.get(layer, {}) for layer in range(len(architecture))]
    uniform = all(layer == layers[0] for layer in layers) and layers[0].keys() <= STOCK_ATTRIBUTES
    return layers[0] if uniform else None


def heterogeneous_config(
    parent_config: PreTrainedConfig, architecture: Architecture, changes: Mapping[str, Any] | None = None
) -> PreTrainedConfig:
    """Return the config of a heterogeneous model, with the model type of this package's model class.

    Args:
        parent_config: the parent's config.
        architecture: the variants of every layer; any number of layers.
        changes: further attributes that differ from the parent's.
    """
    from tangram.models.configuration_tangram import CONFIG_CLASSES, lacks_attention

    shape = Shape.of(parent_config)
    config_class = CONFIG_CLASSES[f"{CHILD_PREFIX}{shape.model_type}"]
    settings = {**parent_config.to_dict(), **(changes or {}), "model_type": config_class.model_type}
    overrides = per_layer_config(architecture, shape)
    layers = [overrides.get(layer, {}) for layer in range(len(architecture))]
    if all(lacks_attention(layer.get("skip", []), layer.get("linear", [])) for layer in layers):
        # Otherwise the cache that counts tokens would be a sliding-window cache.
        settings |= {"sliding_window": None, "use_sliding_window": False}
        if settings.get("layer_types"):
            settings["layer_types"] = ["full_attention"] * len(settings["layer_types"])
    settings |= {
        "linear": [],  # transformers requires a global default of every attribute that a layer overrides
        "structured": [],
        "per_layer_config": overrides,
    }
    return config_class.from_dict(settings)
