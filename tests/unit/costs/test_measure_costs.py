import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tangram.commands.calibrate_costs import calibrate_costs
from tangram.commands.collect_tables import collect_tables
from tangram.commands.measure_costs import measure_costs
from tangram.errors import TangramError
from tangram.files import sha256_of
from tangram.tables import CALIBRATION, COSTS, SCORES, read_table, write_table

LIBRARY = {"attention": ["gqa-1"], "ffn": ["no-op", "parent@int8"], "head": ["parent@bf16"]}


def test_pieces_are_measured_collected_and_calibrated(parents, tmp_path):
    settings = {
        "costs": {"repeats": 3, "stack_megabytes": 1},
        "scenarios": {"chat": {"prefill": 8, "generate": 4, "batch_sizes": [2]}},
    }
    inputs = []
    for kind, variants in {"model": [], **LIBRARY}.items():
        for variant in ["parent", *variants]:
            inputs.append(str(tmp_path / kind / f"{variant}.parquet"))
            measure_costs(json.dumps(settings), kind, variant, str(parents["llama"]), inputs[-1])
    collected, calibration = tmp_path / "costs.parquet", tmp_path / "calibration.parquet"
    collect_tables("costs", str(collected), inputs)
    calibrate_costs(
        json.dumps({**settings, "library": LIBRARY}), str(collected), str(parents["llama"]), str(calibration)
    )
    costs, rows = read_table(collected, COSTS), read_table(calibration, CALIBRATION)
    assert sorted(zip(costs.kind, costs.variant, costs.phase, strict=True)) == sorted(
        (kind, variant, phase)
        for kind, variants in {"model": [], **LIBRARY}.items()
        for variant in ["parent", *variants]
        for phase in ("prefill", "decode")
    )
    assert set(rows.model) == {"stock parent", "parent", "mixed-attention", "mixed-ffn", "mixed"}
    assert rows.groupby("phase")["scale"].nunique().tolist() == [1, 1]
    assert (rows.measured_seconds > 0).all()


def score(layer, variant):
    return {
        "layer": layer,
        "kind": "ffn",
        "variant": variant,
        "metric": "kl",
        "value": 0.1 * layer,
        "standard_error": 0.01,
        "tokens": 64,
    }


@pytest.fixture
def score_tables(tmp_path):
    paths = []
    for variant in ("width-0.5", "linear"):
        for layers in ((2, 3), (0, 1)):
            paths.append(str(tmp_path / f"{variant}-{layers[0]}.parquet"))
            write_table([score(layer, variant) for layer in layers], SCORES, paths[-1])
    return paths


def test_collected_rows_are_sorted_in_any_order_of_inputs(score_tables, tmp_path):
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    collect_tables("scores", str(first), score_tables)
    collect_tables("scores", str(second), score_tables[::-1])
    assert first.read_bytes() == second.read_bytes()
    rows = read_table(first, SCORES)
    pieces = [(layer, variant) for layer in range(4) for variant in ("linear", "width-0.5")]
    assert list(zip(rows.layer, rows.variant, strict=True)) == pieces
    recorded = json.loads(pq.read_metadata(first).metadata[b"tangram.settings"])
    assert recorded["inputs"] == sorted(map(sha256_of, score_tables))


def test_a_piece_that_is_there_twice_is_refused(score_tables, tmp_path):
    with pytest.raises(TangramError, match=r"layer 2, kind ffn, variant width-0\.5, metric kl more than once"):
        collect_tables("scores", str(tmp_path / "out.parquet"), [*score_tables, score_tables[0]])


@pytest.mark.parametrize(
    ("table", "message"), [("costs", "has columns"), ("score", "'score' is not a table.*did you mean 'scores'")]
)
def test_a_wrong_table_is_refused(score_tables, tmp_path, table, message):
    with pytest.raises(TangramError, match=message):
        collect_tables(table, str(tmp_path / "out.parquet"), score_tables)


def test_collecting_needs_no_torch(score_tables, tmp_path):
    code = (
        "import sys; from tangram.commands.collect_tables import collect_tables; "
        f"collect_tables('scores', {str(tmp_path / 'out.parquet')!r}, {score_tables!r}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
