"""Fetch the parent from the hub, a local folder or a package into a checkpoint folder."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, run
from tangram.config import Parent


def fetch_parent(
    settings: Annotated[str, typer.Option(help="config section `parent` as JSON")],
    folder: Annotated[str, typer.Option(help="checkpoint folder to write")],
    source_files: Annotated[str, typer.Option(help="fingerprint of a local source's files, to record")] = "none",
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the parent's checkpoint: config, safetensors, tokenizer, provenance."""
    runtime.start()
    from tangram.config.sources import RECORD
    from tangram.parent.fetch import fetch
    from tangram.provenance import provenance

    section = Parent.model_validate_json(settings)
    metadata = provenance("tangram.commands.fetch_parent", settings)
    fetch(section, folder, runtime.dtype, {**metadata, RECORD: source_files})


if __name__ == "__main__":
    run(fetch_parent)
