"""Quantize one variant of one kind for a range of layers, or the LM head."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, PiecesOption, RuntimeOption, reads, reads_model, run, writes


def quantize_blocks(
    settings: Annotated[
        str, typer.Option(help="`batch_size`, `holdout_fraction`, `ridge`, `normalize` of `library.bld` as JSON")
    ],
    pieces: PiecesOption,
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("distill split")],
    library: Annotated[str, writes("quantized weights (safetensors)")],
    table: Annotated[str, writes("LIBRARY table")],
    source: Annotated[str | None, reads("the trained pieces (safetensors); the parent's weights if omitted")] = None,
    activations: Annotated[str | None, reads("cached activations; recomputed if omitted")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the pieces' weights in the variant's precision, and their held-out losses before and after quantization."""
    runtime.start()
    from tangram.blocks.registry import get_block
    from tangram.models.families import shape_of

    get_block(pieces.kind, pieces.variant, shape_of(parent))
    raise NotImplementedError


if __name__ == "__main__":
    run(quantize_blocks)
