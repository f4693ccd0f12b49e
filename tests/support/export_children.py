"""Tiny children on disk, whose architectures need every rewriting of an export."""

from pathlib import Path

import torch
from tiny_children import LAYERS, MIXED, PARENT_ONLY, UNIFORM, pieces

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.child.assemble import assemble_state, build_config, cast_state, load_parent, save_child
from tangram.models.loading import load_model

ARCHITECTURES = {
    "parent": PARENT_ONLY,
    "uniform": UNIFORM,
    "mixed": MIXED,
    "no-op first": Architecture((LayerChoice("no-op", "no-op"), LayerChoice("no-op"), *PARENT_ONLY.layers[2:])),
    "linear only": Architecture((LayerChoice("linear", "linear"),) * (LAYERS - 1) + (LayerChoice(),)),
    "linear unbiased": Architecture(
        (
            LayerChoice(),
            LayerChoice("linear-unbiased", "parent"),
            LayerChoice("linear-unbiased", "linear-unbiased"),
            LayerChoice("no-op", "linear"),
            LayerChoice("parent", "linear-unbiased"),
        )
    ),
    "no FFN": Architecture((LayerChoice("parent", "no-op"),) * LAYERS),
    "linear last": Architecture((*PARENT_ONLY.layers[1:], LayerChoice("gqa-1", "linear"))),
}


def child_on_disk(parent: Path, folder: Path, architecture: Architecture, dtype: torch.dtype = torch.float32) -> Path:
    """Write a child of hand-made pieces."""
    config, state = load_parent(parent)
    library = pieces(load_model(parent))
    state = cast_state(assemble_state(state, architecture, library), architecture, dtype)
    save_child(state, build_config(config, architecture), parent, folder, {})
    return folder


def random_tokens(sequences: int, length: int) -> torch.Tensor:
    """Return random tokens."""
    return torch.randint(0, 300, (sequences, length), generator=torch.Generator().manual_seed(length))
