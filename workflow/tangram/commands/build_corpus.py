"""Build one split of the corpus: tokenized text, packed to sequences of fixed length."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads_model, run, writes
from tangram.config import Packing, Split


class Settings(Packing):
    """The slice of the config that this command needs."""

    split: Split


def build_corpus(
    settings: Annotated[str, typer.Option(help="the sequences' form and the `split` as JSON")],
    split: Annotated[str, typer.Option(help="name of the split")],
    parent: Annotated[str, reads_model("parent")],
    output: Annotated[str, writes("the split's parquet")],
    source_files: Annotated[str, typer.Option(help="fingerprint of the local texts, to record")] = "none",
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write the sequences of one split, one row each, with source and documents."""
    runtime.start()
    import json
    from pathlib import Path

    from tangram.config.limits import check_length
    from tangram.config.sources import METADATA
    from tangram.corpus.build import build_split
    from tangram.files import check_writable
    from tangram.provenance import provenance
    from tangram.tables import CORPUS, write_table

    section = Settings.model_validate_json(settings)
    check_writable(output)
    parent_config = json.loads(Path(parent, "config.json").read_text())
    check_length("corpus.sequence_length", section.sequence_length, parent_config)
    rows = build_split(split, section.split, section, parent, runtime.seed, runtime.dtype, runtime.device)
    metadata = provenance("tangram.commands.build_corpus", settings, runtime.device)
    write_table(rows, CORPUS, output, {**metadata, METADATA: source_files})


if __name__ == "__main__":
    run(build_corpus)
