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
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int = 1,
) -> None:
    """Write the sequences of one split, a row each, with source and documents."""
    use_threads(threads, seed)
    import json

    from tangram.corpus import build
    from tangram.files import check_writable
    from tangram.provenance import provenance
    from tangram.tables import CORPUS, write_table

    section = json.loads(settings)
    wanted = Split.model_validate(section["split"])
    check_writable(output)
    rows = build(split, wanted, section["sequence_length"], section["cross_documents"], parent, seed, dtype, device)
    write_table(rows, CORPUS, output, provenance("tangram.commands.build_corpus", settings, device))


if __name__ == "__main__":
    run(build_corpus)
