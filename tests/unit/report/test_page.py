# ruff: noqa: RUF001 - the typographic signs are meant

import itertools
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from page_parser import Page
from synthetic_run import PACKED, TASKS, settings_of, write_results

from tangram.errors import TangramError
from tangram.report.comparison import quality_kept
from tangram.report.data import Settings
from tangram.report.drawing import render, spread
from tangram.report.estimates import Estimate, Key
from tangram.report.loading import load_results
from tangram.report.page import render_page
from tangram.report.style import estimate, number, percent_of
from tangram.report.summary import summary_text
from tangram.report.timing import stage_seconds
from tangram.tables import EVALUATION, SAMPLES, SCORES, SPEEDS, read_table, write_table


@pytest.fixture
def small(tmp_path):
    return write_results(tmp_path / "small", layers=4)


def measured(complete, target, solution, model, task, metric):
    if task == "heldout":
        frame = read_table(complete / "targets" / target / solution / "evaluation.parquet", EVALUATION)
    else:
        frame = read_table(complete / "speeds" / "torch.parquet", SPEEDS)
        frame = frame[(frame["target"] == target) & (frame["solution"] == solution)]
    row = frame.set_index(["model", "task", "metric"]).loc[(model, task, metric)]
    return row["value"], row["standard_error"]


def test_headline_says_how_fast_and_how_close_the_child_is(complete, html):
    value, _ = measured(complete, "speed-1.2", "0", "child", "chat", "speedup")
    assert f"SmolLM2-135M-Instruct, {value:.2f} × as fast" in html
    facts = re.findall(r'<div class="fact"><strong>(.*?)<small>', html)
    kl, _ = measured(complete, "speed-1.2", "0", "finetuned", "heldout", "kl")
    perplexity, _ = measured(complete, "speed-1.2", "0", "finetuned", "heldout", "perplexity")
    agreement, _ = measured(complete, "speed-1.2", "0", "finetuned", "heldout", "agreement")
    above = np.mean([accuracy - 0.25 for _, accuracy in TASKS.values()])
    kept = f"{100 * (1 - 0.02 / above):.1f}"
    packed = f"{value / PACKED:.2f}"
    assert facts == [f"{value:.2f}", packed, f"{kl:.3f}", f"{perplexity:.1f}", f"{100 * agreement:.1f}", kept]
    assert f"tasks above chance: {100 * (above - 0.02) / 0.75:.1f}" in html
    assert "predicted 1.204" in html
    assert f"predicted {1.2036 / PACKED:.3f}" in html
    assert f"({packed} × the packed parent)</h1>" in html
    assert "dequantized from Q4_1 GGUF" in html


def test_every_measured_model_has_its_row(complete, page):
    for target in settings_of().targets:
        for solution, words in (("0", ""), ("layers-dropped", ", layers dropped")):
            for model, stage in (("child", "before finetuning"), ("finetuned", "finetuned")):
                row = page.row("measurements", f"{target}{words}, {stage}")
                for cell, metric in zip(row[1:], ("kl", "perplexity", "lm_loss", "agreement"), strict=False):
                    value, error = measured(complete, target, solution, model, "heldout", metric)
                    shown, shown_error = (float(part.replace(",", "")) for part in cell.split(" ± "))
                    assert shown == pytest.approx(value, abs=error / 2)
                    assert shown_error == pytest.approx(error, rel=0.15)
                assert row[-1] == "4,080"


def test_tasks_show_accuracies_and_paired_differences(page):
    for task, (n, accuracy) in TASKS.items():
        row = page.row("tasks", task)
        assert row[1:3] == [str(n), "25.0 %"]
        assert [float(cell.split(" ±")[0].replace("−", "-")) for cell in row[3:]] == pytest.approx(
            [100 * accuracy, 100 * accuracy - 5, -5, 100 * accuracy - 2, -2], abs=0.51
        )


def test_readouts_show_accuracies_and_paired_differences(page):
    row = page.row("readout", "intents, 5 labels")
    assert row[1] == "nearest labeled text"
    assert [float(cell.split(" ±")[0].replace("−", "-")) for cell in row[2:]] == pytest.approx([80, 70, -10, 75, -5])
    held_out = [row for row in page.rows["readout"] if row and row[0] == "held-out text"]
    assert [row[1] for row in held_out] == ["KL, nats/token", "perplexity"]
    measured = [page.row("measurements", f"speed-1.2, {stage}") for stage in ("before finetuning", "finetuned")]
    for place, row in enumerate(held_out, start=1):
        assert [row[3], row[5]] == [found[place] for found in measured]


def test_predictions_stand_beside_measurements(page):
    row = page.row("speed", "speed-1.4")
    assert row[1] == "1.404 ×"
    assert row[2].startswith("1.410")
    assert row[3] == f"−{100 * (1 - 1.4042 / 1.41):.1f} %"


def test_solver_says_bound_gap_and_slack(page):
    row = page.row("solver", "speed-1.2")
    assert row[2:5] == ["≥ 480.0 tokens/s", "481.2 tokens/s", "0.25 %"]
    assert row[5:] == ["0.0123", "0.08642", "0.08642", "0"]


def test_stage_seconds_are_those_of_the_benchmarks(complete, page):
    found = stage_seconds(load_results(complete))
    assert found == [("fetch_parent", 1, 14.2), ("build_corpus", 2, 82.0), ("distill_blocks", 8, 264.0)]
    assert page.row("time", "total")[1:3] == ["11", "6 min 00 s"]


def test_every_layer_of_the_chosen_child_is_on_the_map(complete, html):
    architecture = load_results(complete, settings_of()).architectures["speed-1.2", "0"]
    skyline = html[: html.index("</header>")]
    for layer, choice in enumerate(architecture.layers):
        assert f"<title>layer {layer} · attention · {choice.attention}" in skyline
        assert f"<title>layer {layer} · ffn · {choice.ffn}" in skyline


def test_coordinates_are_rounded_but_never_what_is_written():
    def draw():
        figure = Figure()
        figure.text(0.123456789, 0.5, "0.0012345")
        return figure

    svg = render("name", "alt", draw)
    assert ">0.0012345<" in svg
    assert not re.search(r"\d\.\d{3}", svg.replace("0.0012345", ""))


def test_page_is_whole_by_itself(html, page):
    assert len(html) < 3e6
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe", "object", "embed", "base")]
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "data", "srcset"):
                assert value.startswith("#"), f"<{tag} {name}={value}>"
    assert not re.search(r"@import|url\((?!#)", html)
    assert not page.open or page.open == ["html"]


def test_no_two_elements_share_an_id(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_command_writes_the_same_bytes_in_another_process(complete, html, tmp_path):
    command = ["-m", "tangram.commands.build_report", "--settings", settings_of().model_dump_json()]
    command += ["--results", str(complete), "--output", str(tmp_path / "report.html")]
    subprocess.run([sys.executable, *command], check=True, env={"PYTHONHASHSEED": "1"})
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html


def test_run_that_has_produced_nothing_yet_gives_a_page(tmp_path):
    (tmp_path / "run").mkdir()
    page = Page(render_page(load_results(tmp_path / "run", settings_of())))
    assert "no child measured yet" in page.text
    assert "No child has been evaluated yet." in page.text


def test_run_without_tasks_baseline_solver_facts_and_benchmarks(small):
    for path in [*small.glob("targets/*/layers-dropped"), small / "benchmarks", small / "parent"]:
        shutil.rmtree(path)
    for path in [
        *small.glob("**/*tasks.parquet"),
        *small.glob("**/readout.parquet"),
        *small.glob("targets/*/solutions/*.json"),
        small / "calibration" / "torch.parquet",
    ]:
        path.unlink()
    page = Page(render_page(load_results(small, settings_of(4))))
    assert "evaluates no tasks" in page.text
    assert "representation" not in page.text
    assert "no layers-dropped baseline" in page.text
    assert "has no benchmarks" in page.text
    beside_dropped = [row for row in page.rows["frontier"] if row[:1] == ["speed-1.2"]][1]  # after that of all rivals
    assert beside_dropped[3:5] == ["–", "–"]


def test_run_with_evaluations_only(small):
    for name in ("library", "benchmarks", "costs", "calibration"):
        shutil.rmtree(small / name)
    for path in [*small.glob("*.parquet"), *small.glob("targets/*/*/curves.parquet"), *small.glob("**/*.json")]:
        path.unlink()
    page = Page(render_page(load_results(small, settings_of(4))))
    assert page.row("measurements", "speed-1.6, finetuned")


def test_summary_tells_the_pages_numbers(complete, page):
    text = summary_text(load_results(complete))
    assert re.search(r"^total +11 +6 min 00 s$", text, re.MULTILINE)
    packed = rf"{1.2036 / PACKED:.3f} +{1.21 / PACKED:.3f} ± 0\.007 +-0\.5%"
    assert re.search(rf"^speed-1\.2 +1\.204 +1\.210 ± 0\.008 +-0\.5% +{packed}$", text, re.MULTILINE)
    assert re.search(r"^packed parent +1\.050 +1\.050 ± 0\.006 +\+0\.0% +1 +1 +–$", text, re.MULTILINE)
    for precision in ("bf16", "int8"):
        assert re.search(rf"^parent in {precision}, finetuned ", text, re.MULTILINE)
    kept = percent_of(quality_kept(load_results(complete), Key("speed-1.2", "0", "finetuned")))
    assert kept.startswith("93.8")
    assert re.search(rf"^speed-1\.2, finetuned .* {re.escape(kept)}$", text, re.MULTILINE)
    for label in ("speed-1.2, finetuned", "speed-1.2, layers dropped, finetuned"):
        line = next(line for line in text.splitlines() if line.startswith(label + " "))
        row = page.row("measurements", label)
        assert all(cell in line for cell in (row[1], row[2], row[4]))
    assert re.search(r"^general_knowledge +100 +67\.0 ± 4\.7 ", text, re.MULTILINE)


def test_folder_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(TangramError, match="is not a results folder; run the pipeline"):
        load_results(tmp_path / "none", Settings.model_validate(settings_of().model_dump()))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (None, "–"),
        (Estimate(1.0), "1.00"),
        (Estimate(0.4567, 0.0091), "0.457 ± 0.009"),
        (Estimate(62.84, 3.14), "62.8 ± 3.1"),
        (Estimate(-1234.5, 12.0), "−1,234 ± 12"),
        (Estimate(0.5, 0.0), "0.500"),
    ],
)
def test_estimates_are_written_to_the_place_of_their_error(found, text):
    assert estimate(found) == text


@pytest.mark.parametrize("unknown", [math.inf, math.nan])
def test_an_error_that_one_sequence_cannot_tell_is_a_dash(unknown):
    assert estimate(Estimate(0.3449, unknown, 31)) == "0.345 ± –"
    assert estimate(Estimate(0.3449, unknown, 31), signed=True) == "+0.345 ± –"
    assert estimate(Estimate(0.3449).times(100)) == "34.5"


@pytest.mark.parametrize("unknown", [math.inf, math.nan])
def test_a_run_of_one_sequence_and_one_question_has_a_report(complete, tmp_path, unknown):
    """The score and heldout splits hold one sequence, and a task one question: no standard error is known."""
    folder = shutil.copytree(complete, tmp_path / "run")
    for schema, name in ((SCORES, "scores"), (EVALUATION, "evaluation")):
        for path in folder.glob(f"**/{name}.parquet"):
            frame = read_table(path, schema)
            frame["standard_error"] = unknown
            write_table(frame.to_dict("records"), schema, path)
    for path in [*folder.glob("**/*tasks.parquet"), *folder.glob("**/sequences.parquet")]:
        frame = read_table(path, SAMPLES)
        write_table(frame[frame["sample"] == 0].to_dict("records"), SAMPLES, path)
    results = load_results(folder, settings_of())
    html = render_page(results)
    assert "±" in summary_text(results)
    row = Page(html).row("measurements", "speed-1.2, finetuned")
    assert row[1].endswith(" ± –") == math.isinf(unknown)  # nan in a table says that there is none
    for word in ("∞", ">nan", ">inf"):
        assert word not in html


@pytest.mark.parametrize(
    ("value", "text"), [(math.nan, "–"), (0.0, "0"), (0.123456, "0.123"), (1234.5, "1,234"), (3e-9, "3.00e−09")]
)
def test_numbers_have_three_significant_digits(value, text):
    assert number(value) == text


def test_labels_that_would_touch_are_moved_apart_in_order():
    places = [5.0, 5.1, 20.0, 5.2, 19.9]
    moved = spread(places, 2.0)
    ordered = [moved[i] for i in sorted(range(5), key=lambda i: places[i])]
    assert all(b - a >= 2.0 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert sum(moved) == pytest.approx(sum(places))
