"""Write the architectures of all candidates of a selection, with the checksums of their pieces."""

from typing import Annotated

import typer

from tangram.cli import reads, run, writes


def pin_candidates(
    solutions: Annotated[str, reads("the solver's file of solutions")],
    library: Annotated[str, typer.Option(help="library folder, {kind}/{variant}/{shard}.safetensors")],
    shards: Annotated[str, typer.Option(help="all shards, e.g. 00-14,15-29")],
    output: Annotated[str, writes("candidates.json")],
) -> None:
    """Write the candidates, each in the format of `architecture.json`."""
    import json

    from tangram.blocks.architecture import pinned
    from tangram.files import write_text
    from tangram.library.checksums import piece_checksums
    from tangram.library.pieces import read_library
    from tangram.search.solutions import load_solutions

    architectures = list(load_solutions(solutions).values())
    checksums = piece_checksums(architectures, read_library(library, tuple(shards.split(","))))
    candidates = [pinned(*pair) for pair in zip(architectures, checksums, strict=True)]
    write_text(output, json.dumps({"candidates": candidates}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    run(pin_candidates)
