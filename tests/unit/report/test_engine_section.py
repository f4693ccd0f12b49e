"""The section on targets in llama.cpp."""

# ruff: noqa: RUF001 - the typographic signs are meant

import shutil

from page_parser import Page
from synthetic_run import settings_of

from tangram.report.data import load_results
from tangram.report.page import render_page
from tangram.tables import EVALUATION, write_table

TARGET = "speed-1.2"


def rows_of(model: str, speedup: float, kl: float) -> list[dict]:
    """Return the rows of one file; the reference makes 400 tokens/s."""
    values = {
        ("file", "bytes"): 1.3e8,
        ("heldout", "kl"): kl,
        ("chat", "throughput"): 400 * speedup,
        ("chat", "speedup"): speedup,
        ("chat", "time_to_first_token"): 0.25,
    }
    return [
        {"model": model, "task": task, "metric": metric, "value": value, "standard_error": 0.01 * value, "n": 5}
        for (task, metric), value in values.items()
    ]


def test_files_stand_beside_each_other_in_their_engine(complete, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "run")
    rows = [*rows_of("parent@f16", 1.0, 1e-5), *rows_of("parent@q8_0", 1.1, 0.005), *rows_of("finetuned", 1.25, 0.4)]
    write_table(rows, EVALUATION, folder / "targets" / TARGET / "0" / "engine.parquet")
    settings = settings_of().model_copy(update={"engines": {TARGET: "llama.cpp"}})
    results = load_results(folder, settings)
    page = Page(render_page(results))
    predicted = results.solutions[TARGET, "0"]["scenarios"]["chat"]["speedup"]
    child = page.row("engine", TARGET)
    assert child[:2] == [TARGET, "130"]
    assert child[3:6] == [
        f"{predicted:.3f}",
        "1.250 ± 0.013",
        f"{100 * (predicted / 1.25 - 1):+.1f} %".replace("-", "−"),
    ]
    assert page.row("engine", "parent, Q8_0")[3:5] == ["–", "1.100 ± 0.011"]
    assert not [row for row in page.rows["speed"] if row[0] == TARGET], "predictions there are not of torch"


def test_a_run_in_torch_alone_has_no_such_section(page):
    assert "engine" not in page.rows
    assert "In your engine" not in page.text
