"""Run the parent once over a split and cache the input and output of every layer."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes
from tangram.config import Activations


def capture_activations(
    settings: Annotated[str, typer.Option(help="config section `activations` as JSON")],
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("the split's parquet")],
    output: Annotated[str, writes(".npy")],
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the hidden states of one split, (layers + 1, sequences, length, hidden), memory-mappable."""
    runtime.start()
    from pathlib import Path

    from tangram.activations import capture
    from tangram.corpus.tokens import read_tokens
    from tangram.models.by_layer import load_by_layer
    from tangram.models.loading import load_model

    section = Activations.model_validate_json(settings)
    model = (load_by_layer if runtime.by_layer else load_model)(parent, runtime.dtype, runtime.device)
    capture(model, read_tokens(corpus), section.batch_size, output, f"capture_activations {Path(corpus).stem}")


if __name__ == "__main__":
    run(capture_activations)
