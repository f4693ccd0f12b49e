"""Architectures: one variant per layer and kind and one for the head, as JSON and as a transformers config."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tangram.blocks.base import HEAD, KINDS, PAIR, PARENT
from tangram.blocks.registry import get_block, modules_of_variants
from tangram.errors import TangramError
from tangram.files import write_text
from tangram.models.families import CHILD_PREFIX, Shape, window_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# A stock model can be built if all layers have equal overrides and change only these attributes.
STOCK_ATTRIBUTES = {"num_key_value_heads", "intermediate_size"}


@dataclass(frozen=True)
class LayerChoice:
    """The variants of one layer.

    Attributes:
        attention: the attention's variant.
        ffn: the FFN's variant.
        coupled: whether both have the weights of the pair, which were trained together, instead of two pieces.
    """

    attention: str = PARENT
    ffn: str = PARENT
    coupled: bool = False

    @classmethod
    def parse(cls, pair: str) -> LayerChoice:
        """Return the coupled variants of a pair, such as ``gqa-1+width-0.5``."""
        attention, ffn = pair.split("+")
        return cls(attention, ffn, coupled=True)

    @property
    def pair(self) -> str:
        """The names of both variants, such as ``gqa-1+width-0.5``: the pair's name in tables and in the library."""
        return f"{self.attention}+{self.ffn}"


Choice: TypeAlias = LayerChoice | str  # of a layer: both variants; of the head: its variant


def pieces_of(choice: Choice) -> list[tuple[str, str]]:
    """Return the kinds and variants of a layer's or the head's choice."""
    return [(HEAD, choice)] if isinstance(choice, str) else [(kind, getattr(choice, kind)) for kind in KINDS]


@dataclass(frozen=True)
class Architecture:
    """One variant for every subblock.

    Attributes:
        layers: the variants of every layer.
        head: the variant of the LM head.
    """

    layers: tuple[LayerChoice, ...]
    head: str = PARENT

    @classmethod
    def of(cls, choices: Iterable[Choice]) -> Architecture:
        """Return the architecture of all layers' choices and the head's."""
        chosen = list(choices)
        layers = tuple(choice for choice in chosen if isinstance(choice, LayerChoice))
        return cls(layers, *(choice for choice in chosen if isinstance(choice, str)))

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The choices of all layers in order, then the head's."""
        return (*self.layers, self.head)

    def pieces(self) -> Iterator[tuple[int, str, str]]:
        """Yield layer, kind and variant of every subblock; the head is the last, as of layer 0."""
        for layer, choice in enumerate(self.layers):
            yield from ((layer, kind, variant) for kind, variant in pieces_of(choice))
        yield 0, HEAD, self.head

    def stored(self) -> Iterator[tuple[int, str, str, str]]:
        """Yield layer, kind, variant and name in the library of every subblock that is not the parent's.

        The name is the variant's, or the pair's if the layer's variants are coupled.
        """
        coupled = {layer: choice.pair for layer, choice in enumerate(self.layers) if choice.coupled}
        for layer, kind, variant in self.pieces():
            if variant != PARENT:
                yield layer, kind, variant, variant if kind == HEAD else coupled.get(layer, variant)

    def scored(self) -> Iterator[tuple[int, str, str]]:
        """Yield layer, kind and variant of every score in the objective: those of pieces, or of a coupled pair."""
        for layer, choice in enumerate(self.layers):
            of_layer = [(PAIR, choice.pair)] if choice.coupled else pieces_of(choice)
            yield from ((layer, kind, variant) for kind, variant in of_layer if variant != PARENT)
        if self.head != PARENT:
            yield 0, HEAD, self.head


def from_json(content: Mapping[str, Any]) -> Architecture:
    """Return the architecture in JSON of the form of `dataclasses.asdict`; further entries are ignored.

    Raises:
        KeyError: it lacks the layers, or the head.
        TypeError: an entry has another form.
    """
    return Architecture(tuple(LayerChoice(**layer) for layer in content["layers"]), content["head"])


def pinned(architecture: Architecture, sha256: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of an `architecture.json`: its variants, and the checksum of each piece from the library."""
    return {**asdict(architecture), "sha256": dict(sha256)}


def modules_of(*architectures: Architecture) -> list[str]:
    """Return the modules that define the variants of architectures, for `provenance.code_hash`."""
    return modules_of_variants({variant for a in architectures for _, _, variant in a.pieces()})


def save_architecture(architecture: Architecture, sha256: Mapping[str, str], path: str | Path) -> None:
    """Write an `architecture.json`; equal architectures with equal pieces give equal bytes."""
    write_text(path, json.dumps(pinned(architecture, sha256), indent=1, sort_keys=True) + "\n")


def load_architecture(path: str | Path) -> Architecture:
    """Read an architecture back.

    Raises:
        TangramError: the file is missing or not an architecture.
    """
    try:
        return from_json(json.loads(Path(path).read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TangramError(f"{path} is not an architecture ({error!r}); delete it and run again") from error


def variants_in(path: str | Path) -> set[str]:
    """Return the variants in a file of one architecture, or of several candidates.

    Raises:
        TangramError: the file is missing or holds no architecture.
    """
    try:
        content = json.loads(Path(path).read_text())
        architectures = map(from_json, content.get("candidates", [content]))
        return {variant for architecture in architectures for _, _, variant in architecture.pieces()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TangramError(f"{path} holds no architecture ({error!r}); delete it and run again") from error


def per_layer_config(architecture: Architecture, shape: Shape) -> dict[int, dict[str, Any]]:
    """Return transformers' `per_layer_config` of an architecture: entries of layers that differ from the parent."""
    overrides: dict[int, dict[str, Any]] = {}
    for layer, choice in enumerate(architecture.layers):
        merged: dict[str, Any] = {}
        for kind, variant in pieces_of(choice):
            for key, value in get_block(kind, variant, shape).entries().items():
                merged[key] = [*merged.get(key, []), *value] if isinstance(value, list) else value
        if merged:
            overrides[layer] = merged
    return overrides


def stock_overrides(architecture: Architecture, shape: Shape) -> dict[str, Any] | None:
    """Return the changes of a stock config that describe an architecture; None if no stock model can compute it."""
    overrides = per_layer_config(architecture, shape)
    layers = [overrides.get(layer, {}) for layer in range(len(architecture.layers))]
    alike = all(layer == layers[0] for layer in layers) and layers[0].keys() <= STOCK_ATTRIBUTES
    return layers[0] if alike and architecture.head == PARENT else None


def heterogeneous_config(
    parent_config: PreTrainedConfig, architecture: Architecture, changes: Mapping[str, Any] | None = None
) -> PreTrainedConfig:
    """Return the config of a heterogeneous model, with the model type of this package's model class.

    Args:
        parent_config: the parent's config.
        architecture: the variants, for any number of layers.
        changes: further attributes that differ from the parent's.
    """
    from tangram.models.configuration_tangram import CONFIG_CLASSES, lacks_attention

    shape = Shape.of(parent_config)
    config_class = CONFIG_CLASSES[f"{CHILD_PREFIX}{shape.model_type}"]
    settings = {**parent_config.to_dict(), **(changes or {}), "model_type": config_class.model_type}
    overrides = per_layer_config(architecture, shape)
    layers = [overrides.get(layer, {}) for layer in range(len(architecture.layers))]
    if all(lacks_attention(layer.get("skip", []), layer.get("linear", [])) for layer in layers):
        # Otherwise the cache that counts tokens would be a sliding-window cache.
        types = settings.get("layer_types")
        if not types or "use_sliding_window" in settings:  # Gemma builds the mask of a window in any case
            settings |= {"sliding_window": None, "use_sliding_window": False}
        if types:
            settings["layer_types"] = ["full_attention"] * len(types)
    if any("attention_window" in layer for layer in layers):
        if window_of(parent_config) is not None:
            raise TangramError(
                "library.attention: attention of the parent has a window of its own; leave other windows out"
            )
        settings["attention_window"] = None
    settings |= {
        "linear": [],  # transformers requires a global default of every attribute that a layer overrides
        "structured": [],
        "precision": [],
        "head_precision": None,
        **get_block(HEAD, architecture.head, shape).entries(),
        "per_layer_config": overrides,
    }
    if any("num_attention_heads" in layer for layer in layers):
        settings["head_dim"] = shape.head_dim  # some configs derive it from the number of heads
    if architecture.head != PARENT:  # a matrix of its own, even if the parent's is the embedding
        settings["tie_word_embeddings"] = False
    return config_class.from_dict(settings)
