"""The children of other searches in the report: named, drawn, and beside the solver's."""

# ruff: noqa: RUF001 - the typographic signs are meant

import shutil

import pytest
from page_parser import Page
from synthetic_run import settings_of

from tangram.report.data import load_results
from tangram.report.page import render_page

TARGET = "speed-1.4"


@pytest.fixture(scope="module")
def with_greedy(complete, tmp_path_factory):
    """Return a run whose target has a greedy child: the layers-dropped one under another name."""
    folder = shutil.copytree(complete, tmp_path_factory.mktemp("searches") / "run")
    shutil.copytree(folder / "targets" / TARGET / "layers-dropped", folder / "targets" / TARGET / "greedy")
    solutions = folder / "targets" / TARGET / "solutions"
    text = (solutions / "layers-dropped.json").read_text()
    (solutions / "greedy.json").write_text(text.replace('"layers-dropped"', '"greedy"'))
    return folder


def test_searches_stand_beside_the_solvers_child(complete, with_greedy):
    page = Page(render_page(load_results(with_greedy, settings_of())))
    rows = [row for row in page.rows["solver"] if row[0] == TARGET and len(row) == 6]
    assert [row[1] for row in rows] == ["Tangram", "greedy"]
    results = load_results(complete, settings_of())
    for row, solution in zip(rows, ("0", "layers-dropped"), strict=True):
        score = results.sum_of_scores(results.architectures[TARGET, solution])
        assert float(row[3]) == pytest.approx(score, rel=5e-3)
        entry = results.solutions[TARGET, solution]["scenarios"]["chat"]
        assert row[2] == f"{entry['speedup']:.3f} ×"
    assert page.row("measurements", f"{TARGET}, greedy, finetuned")
    assert "Beside other searches" in page.text
    assert "greedy" in page.source[page.source.index('id="frontier"') :]


def test_a_run_without_searches_has_no_table_of_them(page):
    assert "Beside other searches" not in page.text
