"""Tiny children on disk, whose architectures need every rewriting of an export."""

from pathlib import Path

import torch
from tiny_children import CONSTANTS, LAYERS, MIXED, PARENT_ONLY, QUANTIZED, UNIFORM, pieces

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
    "constants": CONSTANTS,
    "constants last": Architecture((*PARENT_ONLY.layers[2:], LayerChoice("constant"), LayerChoice(*["constant"] * 2))),
    "linear last": Architecture((*PARENT_ONLY.layers[1:], LayerChoice("gqa-1", "linear"))),
}
EIGHT_BITS = {
    "int8": Architecture((LayerChoice("gqa-1@int8", "linear@int8"), *QUANTIZED.layers[1:]), QUANTIZED.head),
    "int8 everywhere": Architecture((LayerChoice("parent@int8", "width-0.5@int8"),) * LAYERS, "parent@int8"),
}


def child_on_disk(
    parent: Path,
    folder: Path,
    architecture: Architecture,
    dtype: torch.dtype = torch.float32,
    shared: bool = True,
) -> Path:
    """Write a child of hand-made pieces; those of 8 bits get random smoothing factors.

    Args:
        parent: the parent's folder.
        folder: the child's folder.
        architecture: its variants.
        dtype: its dtype.
        shared: all query heads of a KV head have the same smoothing factors.
    """
    config, state = load_parent(parent)
    library = pieces(load_model(parent))
    state = cast_state(assemble_state(state, architecture, library), architecture, dtype)
    _randomize_smoothing(state, config.head_dim, shared)
    save_child(state, build_config(config, architecture), parent, folder, {})
    return folder


def random_tokens(sequences: int, length: int) -> torch.Tensor:
    """Return random tokens."""
    return torch.randint(0, 300, (sequences, length), generator=torch.Generator().manual_seed(length))


def _randomize_smoothing(state: dict[str, torch.Tensor], head_dim: int, shared: bool) -> None:
    """Fill the smoothing factors, equal for matrices of one input."""
    for name in [name for name in state if name.endswith(".smooth")]:
        width = len(state[name])
        values = 0.5 + torch.rand(width, generator=torch.Generator().manual_seed(width))  # the same for q, k and v
        if shared and "o_proj" in name:
            kv_heads = len(state[name.replace("o_proj.smooth", "v_proj.weight")]) // head_dim
            values = values.view(kv_heads, -1, head_dim)[:, :1].expand(kv_heads, width // head_dim // kv_heads, -1)
        state[name] = values.flatten()
