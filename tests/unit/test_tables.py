"""Tables: what does not fit the schema is not written, what is damaged is not read."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tangram import tables
from tangram.errors import TangramError
from tangram.tables import CORPUS, LIBRARY, MEASUREMENTS, SCORES, read_arrow, read_table, write_table

ROWS = [
    {
        "layer": layer,
        "kind": "ffn",
        "variant": "linear",
        "metric": "kl",
        "value": layer / 3,
        "standard_error": 0.01,
        "tokens": 8,
    }
    for layer in range(4)
]
SCHEMAS = {name: value for name, value in vars(tables).items() if isinstance(value, pa.Schema)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores.parquet"


def test_rows_and_frames_come_back(path: Path) -> None:
    write_table(ROWS, SCORES, path)
    pd.testing.assert_frame_equal(read_table(path, SCORES), pd.DataFrame(ROWS))
    write_table(pd.DataFrame(ROWS)[::-1].reset_index(drop=True), SCORES, path)
    assert list(read_table(path, SCORES)["layer"]) == [3, 2, 1, 0]


def test_lists_and_no_rows_come_back(tmp_path: Path) -> None:
    row = {"sequence_id": 0, "source": "s", "input_ids": [1, 2], "documents": ["d"], "document_starts": [0]}
    write_table([row], CORPUS, tmp_path / "corpus.parquet")
    assert read_arrow(tmp_path / "corpus.parquet", CORPUS).to_pylist() == [row]
    for name, schema in SCHEMAS.items():
        write_table([], schema, tmp_path / name)
        assert list(read_table(tmp_path / name, schema).columns) == schema.names


def test_equal_rows_give_equal_bytes_with_provenance_inside(path: Path, tmp_path: Path) -> None:
    write_table(ROWS, SCORES, path, {"tangram.command": "here"})
    write_table(pd.DataFrame(ROWS), SCORES, tmp_path / "again.parquet", {"tangram.command": "here"})
    assert path.read_bytes() == (tmp_path / "again.parquet").read_bytes()
    assert pq.read_schema(path).metadata[b"tangram.command"] == b"here"


@pytest.mark.parametrize(
    "change",
    [{"value": None}, {"value": "much"}, {"kind": None}],
    ids=["null", "text for a number", "null text"],
)
def test_rows_that_do_not_fit_are_refused_and_the_table_stays(path: Path, change: dict) -> None:
    write_table(ROWS, SCORES, path)
    before = path.read_bytes()
    with pytest.raises(TangramError, match=r"scores\.parquet"):
        write_table([ROWS[0] | change], SCORES, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_missing_column_is_refused(path: Path) -> None:
    with pytest.raises(TangramError, match="schema"):
        write_table(pd.DataFrame(ROWS).drop(columns="tokens"), SCORES, path)


def test_nulls_are_kept_where_the_schema_allows_them(path: Path) -> None:
    row = {"layer": 0, "kind": "ffn", "variant": "no-op", "parameters": 0, "tokens": 0, "seconds": 0.0}
    write_table([row | {"bld_loss_before": 1.0, "bld_loss_after": None, "kept": "initial"}], LIBRARY, path)
    assert read_table(path, LIBRARY)["bld_loss_after"].isna().all()


def test_nulls_before_values_have_an_equal_checksum_when_read(path: Path) -> None:
    """Parquet's reader leaves other bytes under nulls than Arrow's builder does."""
    row = {"experiment": "e", "arm": "a", "seed": 0, "metric": "m", "value": 1.0}
    write_table([{**row, "x": x} for x in (None, None, 6.0, None, 7.0)], MEASUREMENTS, path)
    assert read_table(path, MEASUREMENTS)["x"].fillna(-1).tolist() == [-1, -1, 6, -1, 7]


def test_changed_values_are_detected(path: Path) -> None:
    write_table(ROWS, SCORES, path)
    table = pq.read_table(path)
    values = pa.array([9.0, *table["value"].to_pylist()[1:]])
    pq.write_table(table.set_column(4, table.schema.field("value"), values), path)
    with pytest.raises(TangramError, match="does not match its own checksum; delete it and run again"):
        read_table(path, SCORES)


def test_a_truncated_table_is_detected(path: Path) -> None:
    write_table(ROWS, SCORES, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TangramError, match=r"is damaged .* delete it and run again"):
        read_table(path, SCORES)


def test_every_flipped_byte_is_detected_or_harmless(path: Path) -> None:
    write_table(ROWS, SCORES, path)
    content, right = path.read_bytes(), read_table(path, SCORES)
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            found = read_table(path, SCORES)
        except TangramError:
            continue
        pd.testing.assert_frame_equal(found, right)


def test_missing_and_foreign_tables(path: Path) -> None:
    with pytest.raises(TangramError, match="does not exist; run the pipeline"):
        read_table(path, SCORES)
    write_table(ROWS, SCORES, path)
    with pytest.raises(TangramError, match="expected"):
        read_table(path, LIBRARY)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_has_a_unit(name: str) -> None:
    assert all(field.metadata[b"unit"] for field in SCHEMAS[name])
