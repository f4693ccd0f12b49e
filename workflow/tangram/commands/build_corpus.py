"""Build one split of the corpus: text, tokenised, packed to fixed length."""

from typing import Annotated

import typer

from tangram.cli import run, use_threads
from tangram.config import Split


def build_corpus(
    settings: Annotated[str, typer.Option(help="`sequence_length`, `cross_documents` and the `split` as JSON")],
    split: Annotated[str, typer.Option(help="name of the split")],
    parent: Annotated[str, typer.Option(help="parent's folder")],
    output: Annotated[str, typer.Option(help="parquet to write")],
    source_files: Annotated[str, typer.Option(help="what local texts hold; recorded")] = "none",
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int = 1,
) -> None:
    """Write the sequences of one split, a row each, with source and documents."""
    use_threads(threads, seed, device)
    import json
    from pathlib import Path

    from tangram.config.limits import check_length
    from tangram.config.sources import METADATA
    from tangram.corpus.build import build_split
    from tangram.files import check_writable
    from tangram.provenance import provenance
    from tangram.tables import CORPUS, write_table

    section = json.loads(settings)
    wanted = Split.model_validate(section["split"])
    check_writable(output)
    parent_config = json.loads(Path(parent, "config.json").read_text())
    check_length("corpus.sequence_length", section["sequence_length"], parent_config)
    rows = build_split(
        split, wanted, section["sequence_length"], section["cross_documents"], parent, seed, dtype, device
    )
    made_by = provenance("tangram.commands.build_corpus", settings, device)
    write_table(rows, CORPUS, output, {**made_by, METADATA: source_files})


if __name__ == "__main__":
    run(build_corpus)
