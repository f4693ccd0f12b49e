"""Numbers of a parent's parameters by part, for the planner."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tangram.config import Config
from tangram.config.limits import shape_from
from tangram.errors import TangramError
from tangram.models.families import Shape


@dataclass(frozen=True)
class Sizes:
    """Numbers of a parent's parameters by part; embedding and head are one matrix if they are ``tied``."""

    layers: int
    hidden: int
    attention: int
    ffn: int
    head: int
    embedding: int
    kv_per_token: int
    tied: bool

    @property
    def inner(self) -> int:
        """Channels of an FFN."""
        return self.ffn // (3 * self.hidden)

    @property
    def activations(self) -> int:
        """Activations per token that a layer stores for its backward pass, counted on Llama."""
        return 11 * self.hidden + 4 * self.inner

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return self.attention + self.ffn

    @property
    def body(self) -> int:
        """Parameters of all layers."""
        return self.layers * self.layer

    @property
    def total(self) -> int:
        """Stored parameters."""
        return self.body + self.ends

    @property
    def ends(self) -> int:
        """Parameters outside the layers."""
        return self.embedding + (0 if self.tied else self.head)


def _parent_sizes(config: Config) -> dict[str, Any]:
    """Return `parent.sizes` or the fetched checkpoint's `config.json`; see `sizes_of` for errors."""
    path = Path("results", config.run, "parent", "config.json")
    if config.parent.sizes is not None:
        return config.parent.sizes.model_dump()
    if path.is_file():
        return dict(json.loads(path.read_text()))
    raise TangramError(f"the parent's sizes are not known: fetch it ({path}), or set config.parent.sizes")


def shape_of_parent(config: Config) -> Shape:
    """Return the parent's shape; see `sizes_of`."""
    return shape_from(config, _parent_sizes(config))


def sizes_of(config: Config) -> Sizes:
    """Return the parent's sizes, from its fetched checkpoint or from `parent.sizes`.

    Raises:
        TangramError: neither exists.
    """
    shape = shape_of_parent(config)
    return Sizes(
        layers=shape.num_layers,
        hidden=shape.hidden,
        attention=shape.parameters("attention"),
        ffn=shape.parameters("ffn"),
        head=shape.hidden * shape.vocabulary,
        embedding=shape.hidden * shape.vocabulary,
        kv_per_token=2 * shape.head_dim * shape.kv_heads,
        tied=shape.tied_head,
    )
