"""The children of other searches in the report: named, drawn, and beside the solver's."""

# ruff: noqa: RUF001 - the typographic signs are meant

import json
import shutil

import pytest
from page_parser import Page
from synthetic_run import settings_of

from tangram.config import RANDOM_WEIGHTS
from tangram.report.comparison import scored_children
from tangram.report.loading import load_results
from tangram.report.page import render_page

TARGET = "speed-1.4"


@pytest.fixture(scope="module")
def with_rivals(complete, tmp_path_factory):
    """Return a run whose target has children of two other searches: the layers-dropped one under other names."""
    folder = shutil.copytree(complete, tmp_path_factory.mktemp("searches") / "run")
    solutions = folder / "targets" / TARGET / "solutions"
    text = (solutions / "layers-dropped.json").read_text()
    for name in ("greedy", RANDOM_WEIGHTS):
        shutil.copytree(folder / "targets" / TARGET / "layers-dropped", folder / "targets" / TARGET / name)
        (solutions / f"{name}.json").write_text(text.replace('"layers-dropped"', f'"{name}"'))
    return folder


def test_searches_stand_beside_the_solvers_child(complete, with_rivals):
    page = Page(render_page(load_results(with_rivals, settings_of())))
    rows = [row for row in page.rows["solver"] if row[0] == TARGET and len(row) == 6]
    assert [row[1] for row in rows] == ["Tangram", "greedy", "random weights"]
    assert rows[2][3] == "–"  # scores are not those of random weights
    assert all(child.solution != RANDOM_WEIGHTS for child in scored_children(load_results(with_rivals, settings_of())))
    results = load_results(complete, settings_of())
    for row, solution in zip(rows[:2], ("0", "layers-dropped"), strict=True):
        score = results.sum_of_scores(results.architectures[TARGET, solution])
        assert float(row[3]) == pytest.approx(score, rel=5e-3)
        entry = results.solutions[TARGET, solution]["scenarios"]["chat"]
        assert row[2] == f"{entry['speedup']:.3f} ×"
    assert page.row("measurements", f"{TARGET}, greedy, finetuned")
    assert "Beside other searches" in page.text
    assert "greedy" in page.source[page.source.index('id="frontier"') :]


def test_a_run_without_searches_has_no_table_of_them(page):
    assert "Beside other searches" not in page.text


ROUND = {"round": 1, "limits": ["throughput >= 1"], "kl_before": 0.5, "kl_after": 0.25}
ROUND |= {"finetune_tokens": 1536, "kept": "trained"}


@pytest.mark.parametrize("solution", ["0", "layers-dropped"])
def test_rounds_of_the_child_are_listed(complete, tmp_path, solution):
    folder = shutil.copytree(complete, tmp_path / "run")
    solutions = folder / "targets" / TARGET / "solutions"
    name = "mip" if solution == "0" else solution
    content = json.loads((solutions / f"{name}.json").read_text())
    entry = next(entry for entry in content["solutions"] if entry["solution"] == solution)
    content |= {"solutions": [{**entry, "solution": "0", "objective": 7.0}], "rounds": [ROUND]}
    (folder / "targets" / TARGET / "rounds").mkdir()
    (folder / "targets" / TARGET / "rounds" / "solution.json").write_text(json.dumps(content))
    results = load_results(folder, settings_of())
    page = Page(render_page(results))
    listed = [TARGET, "1", "throughput >= 1", "0.500", "0.250", "1,536", "trained"]
    assert (listed in page.rows["solver"]) == (solution == "0"), "rounds that led to another child do not count"
    assert (results.solutions[TARGET, "0"].get("objective") == 7.0) == (solution == "0")
