"""Write an answer's architecture, or all answers', with the checksum of each piece taken from the block library."""

import functools
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangram.cli import run

if TYPE_CHECKING:
    import torch


def _checksum(piece: Mapping[str, "torch.Tensor"]) -> str:
    """Return the SHA-256 of a piece's weights alone: how its file came about does not matter."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(piece.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pick_pieces(
    solution: Annotated[
        str, typer.Option(help="architecture that a search found, or a folder of {rank}/architecture.json")
    ],
    library: Annotated[str, typer.Option(help="library folder, {kind}/{variant}/{shard}.safetensors")],
    shards: Annotated[str, typer.Option(help="all shards, e.g. 00-14,15-29")],
    output: Annotated[str, typer.Option(help="architecture.json to write")],
) -> None:
    """Write what a child is made of: the same choices of the same weights give the same bytes."""
    import dataclasses
    import json
    from pathlib import Path

    from tangram.blocks.architecture import load_architecture
    from tangram.blocks.base import PARENT
    from tangram.files import write_text
    from tangram.library.pieces import read_library

    piece = read_library(library, tuple(shards.split(",")))

    @functools.cache  # answers share pieces
    def checksum(kind: str, variant: str, layer: int) -> str:
        return _checksum(piece(kind, variant, layer))

    def content(path: str | Path) -> dict[str, Any]:
        choices = [dataclasses.asdict(choice) for choice in load_architecture(path)]
        pieces = {
            f"{layer:03} {kind} {variant}": checksum(kind, variant, layer)
            for layer, choice in enumerate(choices)
            for kind, variant in choice.items()
            if variant != PARENT
        }
        return {"layers": choices, "sha256": pieces}

    if Path(solution).is_dir():
        ranks = sorted(Path(solution).glob("*/architecture.json"), key=lambda path: int(path.parent.name))
        picked: dict[str, Any] = {"candidates": [content(path) for path in ranks]}
    else:
        picked = content(solution)
    write_text(output, json.dumps(picked, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    run(pick_pieces)
