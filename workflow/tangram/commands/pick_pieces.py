"""Write an answer's architecture, with the checksum of each piece that it takes from the block library."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

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
    solution: Annotated[str, typer.Option(help="architecture that a search found")],
    library: Annotated[str, typer.Option(help="library folder, {kind}/{variant}/{shard}.safetensors")],
    shards: Annotated[str, typer.Option(help="all shards, e.g. 00-14,15-29")],
    output: Annotated[str, typer.Option(help="architecture.json to write")],
) -> None:
    """Write what a child is made of: the same choices of the same weights give the same bytes."""
    import dataclasses
    import json

    from tangram.blocks.base import PARENT
    from tangram.child.architecture import load_architecture
    from tangram.child.assemble import read_library
    from tangram.files import write_text

    choices = [dataclasses.asdict(choice) for choice in load_architecture(solution)]
    piece = read_library(library, tuple(shards.split(",")))
    pieces = {
        f"{layer:03} {kind} {variant}": _checksum(piece(kind, variant, layer))
        for layer, choice in enumerate(choices)
        for kind, variant in choice.items()
        if variant != PARENT
    }
    write_text(output, json.dumps({"layers": choices, "sha256": pieces}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    run(pick_pieces)
