"""Concatenate the tables of all variants' jobs."""

from typing import Annotated

import typer

from tangram.cli import reads_each, run, writes


def collect_tables(
    table: Annotated[str, typer.Option(help="scores or costs")],
    output: Annotated[str, writes("table")],
    tables: Annotated[list[str], reads_each("tables to concatenate")],
) -> None:
    """Write all rows of tables of one schema, sorted by their keys; the provenance holds each input's checksum."""
    import json

    import pyarrow as pa

    from tangram.errors import TangramError, nearest
    from tangram.files import sha256_of
    from tangram.provenance import provenance
    from tangram.tables import COSTS, SCORES, read_arrow, write_table

    schemas = {"scores": SCORES, "costs": COSTS}
    keys = {
        "scores": ["layer", "kind", "variant", "metric"],
        "costs": ["layer_class", "kind", "variant", "engine", "device", "scenario", "phase", "batch"],
    }
    if table not in schemas:
        raise TangramError(f"--table: '{table}' is not a table to collect{nearest(table, list(schemas))}")
    rows = pa.concat_tables([read_arrow(path, schemas[table]) for path in tables]).to_pandas()
    rows = rows.sort_values(keys[table], ignore_index=True)
    repeated = rows[rows.duplicated(keys[table])]
    if len(repeated):
        row = ", ".join(f"{key} {repeated.iloc[0][key]}" for key in keys[table])
        raise TangramError(f"{output}: the inputs hold {row} more than once; name each piece's table once")
    settings = {"table": table, "inputs": sorted(sha256_of(path) for path in tables)}
    write_table(rows, schemas[table], output, provenance("tangram.commands.collect_tables", json.dumps(settings)))


if __name__ == "__main__":
    run(collect_tables)
