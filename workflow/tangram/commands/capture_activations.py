"""Run the parent once over a split and cache every block's input and output."""

from typing import Annotated

import typer

from tangram.cli import run, use_threads
from tangram.config import Activations


def capture_activations(
    settings: Annotated[str, typer.Option(help="config section `activations` as JSON")],
    parent: Annotated[str, typer.Option(help="parent's folder")],
    corpus: Annotated[str, typer.Option(help="the split's parquet")],
    output: Annotated[str, typer.Option(help=".npy to write")],
    by_layer: Annotated[int, typer.Option(help="1: hold one layer's weights at a time")] = 0,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int = 1,
) -> None:
    """Write the hidden states of one split, (layers + 1, sequences, length, hidden), memory-mappable."""
    use_threads(threads, device=device)
    from pathlib import Path

    from tangram.activations import capture
    from tangram.corpus.tokens import read_tokens
    from tangram.models.by_layer import load_by_layer
    from tangram.models.loading import load_model

    section = Activations.model_validate_json(settings)
    model = (load_by_layer if by_layer else load_model)(parent, dtype, device)
    capture(model, read_tokens(corpus), section.batch_size, output, f"capture_activations {Path(corpus).stem}")


if __name__ == "__main__":
    run(capture_activations)
