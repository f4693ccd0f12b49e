"""Assemble a child from another one: subblocks that stay keep their trained weights, others become pieces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tangram.blocks.architecture import Architecture, from_json
from tangram.blocks.base import PARENT
from tangram.child.assemble import assemble_state, load_weights
from tangram.errors import TangramError
from tangram.library.pieces import Library, State, tensor_name


@dataclass(frozen=True)
class Child:
    """A child in memory.

    Attributes:
        architecture: its variants.
        state: its tensors by their names in a checkpoint.
    """

    architecture: Architecture
    state: Mapping[str, torch.Tensor]


def load_child(folder: str | Path) -> Child:
    """Read a child's checkpoint.

    Raises:
        TangramError: a file cannot be read, or does not say the architecture.
    """
    path = Path(folder) / "provenance.json"
    try:
        architecture = from_json(json.loads(path.read_text(encoding="utf-8"))["architecture"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TangramError(f"{path} holds no architecture ({error!r}); delete the folder and run again") from error
    return Child(architecture, load_weights(folder))


def reassemble_state(
    parent_state: Mapping[str, torch.Tensor], child: Child, architecture: Architecture, library: Library
) -> dict[str, torch.Tensor]:
    """Return the tensors of a child that goes on from another one.

    Subblocks of equal variants, embedding, norms and head have the other child's weights; further subblocks are pieces
    of the library. A norm that the other child lacks is the parent's.

    Args:
        parent_state: the parent's tensors.
        child: the child to begin with.
        architecture: the new variants.
        library: source of the pieces.

    Raises:
        TangramError: a piece holds NaN or infinite values.
        ValueError: a replaced subblock shall be the parent's again.
    """
    current = {(layer, kind): variant for layer, kind, variant in child.architecture.pieces()}
    for layer, kind, variant in architecture.pieces():
        if variant == PARENT != current[layer, kind]:
            raise ValueError(f"{kind} of layer {layer} is {current[layer, kind]}, and cannot be the parent's again")

    def piece(kind: str, variant: str, layer: int) -> State:
        if current[layer, kind] != variant:
            return library(kind, variant, layer)
        prefix = tensor_name(layer, kind, "")
        return {name.removeprefix(prefix): t for name, t in child.state.items() if name.startswith(prefix)}

    return assemble_state({**parent_state, **child.state}, architecture, piece)
