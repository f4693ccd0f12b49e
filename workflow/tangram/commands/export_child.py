"""Write a child in the format of another engine."""

from typing import Annotated

import typer

from tangram.cli import reads_model, run


def export_child(
    child: Annotated[str, reads_model("the child, or a parent")],
    format: Annotated[str, typer.Option(help="`gguf`, `decilm` or `hf`")],
    folder: Annotated[str, typer.Option(help="folder to write model.gguf, or the checkpoint, into")],
    floats: Annotated[
        str | None,
        typer.Option(
            help="gguf: type of matrices without a precision, such as `f16` or `q4_k_m`; by default their own"
        ),
    ] = None,
) -> None:
    """Write a child, or a parent, in a format whose engine computes the same logits."""
    from pathlib import Path

    from tangram.blocks.base import FORMATS, GGUF_PRECISIONS
    from tangram.engines import DECILM, GGUF, HF, RECIPES
    from tangram.errors import TangramError, nearest
    from tangram.export.decilm import write_decilm
    from tangram.export.gguf import write_gguf
    from tangram.export.hf import write_hf
    from tangram.export.parts import read_checkpoint
    from tangram.provenance import provenance

    if format not in FORMATS:
        raise TangramError(f"--format: '{format}' is not a format{nearest(format, FORMATS)}")
    types = ("f32", "bf16", *GGUF_PRECISIONS, *RECIPES)
    if floats not in (None, *types):
        raise TangramError(f"--floats: '{floats}' is not a type{nearest(str(floats), types)}")
    metadata = provenance("tangram.commands.export_child", {"format": format, "floats": floats})
    checkpoint = read_checkpoint(child)
    if format == GGUF:
        write_gguf(checkpoint, Path(folder) / "model.gguf", metadata, floats)
    else:
        {DECILM: write_decilm, HF: write_hf}[format](checkpoint, folder, metadata)


if __name__ == "__main__":
    run(export_child)
