"""The two commands on files: contents, schemas, equal bytes on a second run, one line for a user's mistake."""

import json
import subprocess
import sys

import pytest
from synthetic_library import library

from tangram.commands.drop_layers import drop_layers
from tangram.commands.solve_mip import solve_mip
from tangram.config import Search, Target, slice_of
from tangram.search.solutions import load_solutions
from tangram.tables import CALIBRATION, COSTS, SCORES, SOLUTIONS, read_table, write_table

LAYERS = 6


@pytest.fixture
def inputs(tmp_path) -> dict:
    """Tables and a parent's config on disk; one pair of layer 0 is scored as a whole, and is the best there."""
    tables = library(2, LAYERS, head={"parent@bf16": 0.6})
    block = {**tables.scores.iloc[0].to_dict(), "kind": "block", "variant": "gqa-1+no-op", "value": -1.0}
    tables.scores.loc[len(tables.scores)] = block
    for name, frame, schema in (
        ("scores", tables.scores, SCORES),
        ("costs", tables.costs, COSTS),
        ("calibration", tables.calibration, CALIBRATION),
    ):
        write_table(frame, schema, tmp_path / f"{name}.parquet")
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent" / "config.json").write_text(json.dumps({"num_hidden_layers": LAYERS, "dtype": "float32"}))
    names = ("scores", "costs", "calibration")
    paths = {name: tmp_path / f"{name}.parquet" for name in names} | {"parent": tmp_path / "parent"}
    return {**paths, "settings": settings_of(tables.scenarios, 1.4)}


def settings_of(scenarios: dict, factor: float) -> str:
    constraint = {"quantity": "throughput", "min": factor, "scenario": "chat"}
    target = Target.model_validate({"constraints": [constraint], "solutions": 2})
    return slice_of({"target": target, "search": Search(), "scenarios": scenarios})


def test_solve_mip_writes_the_same_bytes_twice(inputs, tmp_path):
    for out in ("a", "b"):
        folder = tmp_path / out
        solve_mip(**inputs, solutions=folder / "mip.json", table=folder / "solutions.parquet")
    written = [sorted(p.relative_to(tmp_path / out) for p in (tmp_path / out).rglob("*.*")) for out in ("a", "b")]
    assert written[0] == written[1]
    assert {str(path) for path in written[0]} == {"solutions.parquet", "mip.json"}
    for path in written[0]:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()

    rows = read_table(tmp_path / "a" / "solutions.parquet", SOLUTIONS)
    content = json.loads((tmp_path / "a" / "mip.json").read_text())
    architectures = load_solutions(tmp_path / "a" / "mip.json")
    assert list(architectures) == ["0", "1"]
    assert all(record["feasible"] and not record["changes"] for record in content["solutions"][0]["sensitivity"])
    assert "sensitivity" not in content["solutions"][1]
    assert content["parent"]["scenarios"]["chat"]["speedup"] == 1.0
    for entry in content["solutions"]:
        own = rows[rows["solution"] == entry["solution"]]
        assert own["score"].sum() == pytest.approx(entry["objective"])
        (limit,) = entry["constraints"]
        assert limit["limit"] == pytest.approx(1.4 * content["parent"]["scenarios"]["chat"]["throughput"])
        assert limit["slack"] == pytest.approx(limit["value"] - limit["limit"])
        assert limit["slack"] >= 0
        assert entry["scenarios"]["chat"]["speedup"] >= 1.4
        assert entry["bound"] <= entry["objective"]
        architecture = architectures[entry["solution"]]
        assert own[own["kind"] == "head"][["layer", "variant"]].to_numpy().tolist() == [[0, architecture.head]]
        for row in own[own["kind"] != "head"].itertuples():
            choice = architecture.layers[row.layer]
            whole = f"{choice.attention}+{choice.ffn}"
            assert row.variant == (whole if row.kind == "block" else getattr(choice, row.kind))
    first = rows[(rows["solution"] == "0") & (rows["layer"] == 0) & (rows["kind"] != "head")]
    assert first[["kind", "variant", "score"]].to_numpy().tolist() == [["block", "gqa-1+no-op", -1.0]]


def test_drop_layers_writes_an_architecture_and_its_numbers(inputs, tmp_path):
    drop_layers(**inputs, solutions=tmp_path / "layers-dropped.json")
    (content,) = json.loads((tmp_path / "layers-dropped.json").read_text())["solutions"]
    architecture = load_solutions(tmp_path / "layers-dropped.json")["layers-dropped"]
    gone = [layer for layer, choice in enumerate(architecture.layers) if choice.attention == choice.ffn == "no-op"]
    assert content["layers_dropped"] == gone
    assert gone
    speed = content["scenarios"]["chat"]
    assert 1 < speed["speedup"] <= 1.4
    assert content["constraints"][0]["value"] == speed["throughput"]


def test_an_infeasible_target_is_one_line_and_exit_1(inputs, tmp_path):
    settings = json.loads(inputs["settings"])
    settings["target"]["constraints"][0]["min"] = 1e6
    inputs["settings"] = json.dumps(settings)
    outputs = {name: tmp_path / "out" / name for name in ("solutions", "table")}
    options = [part for name, value in {**inputs, **outputs}.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "tangram.commands.solve_mip", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the target is infeasible: throughput in 'chat' >= 1e+06 x the parent's (feasible: ")
    assert not (tmp_path / "out").exists()
