"""Write a solution's architecture with the checksum of each of its pieces."""

from typing import Annotated

import typer

from tangram.cli import reads, run, writes


def pin_architecture(
    solutions: Annotated[str, reads("file of solutions")],
    solution: Annotated[str, typer.Option(help="name of the solution")],
    library: Annotated[str, typer.Option(help="library folder, {kind}/{variant}/{shard}.safetensors")],
    shards: Annotated[str, typer.Option(help="all shards, e.g. 00-14,15-29")],
    output: Annotated[str, writes("architecture.json")],
) -> None:
    """Write variants and checksums of a child; equal variants with equal weights give equal bytes."""
    from tangram.blocks.architecture import save_architecture
    from tangram.errors import TangramError
    from tangram.library.checksums import piece_checksums
    from tangram.library.pieces import read_library
    from tangram.search.solutions import load_solutions

    architectures = load_solutions(solutions)
    if solution not in architectures:
        raise TangramError(f"{solutions} holds no solution '{solution}', only {', '.join(architectures)}")
    architecture = architectures[solution]
    (checksums,) = piece_checksums([architecture], read_library(library, tuple(shards.split(","))))
    save_architecture(architecture, checksums, output)


if __name__ == "__main__":
    run(pin_architecture)
