"""Costs whose interval is wide, and the choices that depend on them."""

# ruff: noqa: RUF001 - the typographic signs are meant

import json
import shutil

from synthetic_run import settings_of

from tangram.report.loading import load_results
from tangram.report.page import render_page
from tangram.tables import COSTS, read_table, write_table


def test_uncertain_costs_name_the_targets_that_chose_them(complete, page):
    rows = [row for row in page.rows["costs"] if len(row) == 4 and row[0] == "FFN width-0.5@int8"]
    assert [row[:3] for row in rows] == [
        ["FFN width-0.5@int8", "chat, batch 4: decode", f"{0.3 * 1.03:.3f} ± {1.96 * 0.02:.3f}"]
    ]
    architectures = load_results(complete, settings_of()).architectures
    counts = {
        t: sum(v == "width-0.5@int8" for _, _, v in architectures[t, "0"].pieces()) for t in settings_of().targets
    }
    assert rows[0][3] == ", ".join(f"{count} in {target}" for target, count in counts.items() if count)
    wide = {row[0] for row in page.rows["costs"] if len(row) == 4 and row[0] not in ("target", *settings_of().targets)}
    assert wide == {"piece", "FFN width-0.5@int8"}


def test_certain_costs_are_said_to_be_certain(complete, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "run")
    frame = read_table(folder / "costs" / "torch.parquet", COSTS)
    write_table(frame.assign(ratio_error=0.01).to_dict("records"), COSTS, folder / "costs" / "torch.parquet")
    page = render_page(load_results(folder, settings_of()))
    assert "every piece’s relative time is within ± 2 %" in page
    assert "Uncertain costs" not in page


def test_choices_that_another_cost_would_change_are_named(complete, page, tmp_path):
    rows = [row[1:] for row in page.rows["costs"] if len(row) == 4 and row[0] == "speed-1.2"]
    assert rows == [
        ["FFN no-op", "shorter", "2 × ffn: linear to no-op"],
        ["FFN no-op", "longer", "no architecture satisfies the limits"],
    ]
    folder = shutil.copytree(complete, tmp_path / "run")
    for path in folder.glob("targets/*/solutions/mip.json"):
        content = json.loads(path.read_text())
        content["solutions"][0]["sensitivity"] = content["solutions"][0]["sensitivity"][2:]
        path.write_text(json.dumps(content))
    assert "No cost within its 95 % interval changes a choice" in render_page(load_results(folder, settings_of()))
