"""Compare the texts of all trials."""

from typing import Annotated

from tangram.cli import reads_each, run, writes


def try_texts(
    output: Annotated[str, writes("TRIALS table")],
    tables: Annotated[list[str] | None, reads_each("SAMPLES tables, {candidate}/{draw}.parquet")] = None,
) -> None:
    """Write the verdicts, and print them in one line."""
    import json
    import sys
    from pathlib import Path

    from tangram.errors import TangramError
    from tangram.files import sha256_of
    from tangram.provenance import provenance
    from tangram.tables import SAMPLES, TRIALS, read_table, write_table
    from tangram.trials.verdicts import compare, kl_of, sentence

    if not tables:
        raise TangramError("text_trials.sources is empty; name at least two texts to compare")
    by_candidate: dict[str, list[str]] = {}
    for path in sorted(tables, key=lambda path: int(Path(path).stem)):
        by_candidate.setdefault(Path(path).parent.name, []).append(path)
    frames = {name: [read_table(path, SAMPLES) for path in paths] for name, paths in by_candidate.items()}
    trained = {name: kl_of(frames_of, "finetuned") for name, frames_of in frames.items()}
    before = {name: kl_of(frames_of[:1], "child") for name, frames_of in frames.items()}
    rows = compare(trained, before)
    settings = json.dumps({"inputs": sorted(sha256_of(path) for path in tables)})
    write_table(rows, TRIALS, output, provenance("tangram.commands.try_texts", settings))
    print(f"try_texts: {sentence(rows)}", file=sys.stderr)


if __name__ == "__main__":
    run(try_texts)
