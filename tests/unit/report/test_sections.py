"""The page of a run with precisions, a searched head and rivals of uniform precision."""

# ruff: noqa: RUF001 - the typographic signs are meant

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from page_parser import Page
from synthetic_run import PACKED, PRIMARY, RIVALS, TASKS_OF, law, settings_of, write_child

from tangram.report.comparison import quality_difference, quality_kept, scored_children
from tangram.report.estimates import Key
from tangram.report.loading import load_results
from tangram.report.page import render_page
from tangram.report.sections.speed import speed_section
from tangram.report.style import number, percent_of
from tangram.report.summary import summary_text
from tangram.tables import (
    COSTS,
    CURVES,
    EVALUATION,
    LIBRARY,
    SCORES,
    SPEEDS,
    TRIALS,
    VALIDATION_KL,
    read_table,
    write_table,
)


def test_rivals_stand_beside_the_chosen_child(complete, page):
    for name, over in (("parent", ["1", "1"]), ("packed parent", ["1.050 ×", "1.050 ± 0.006 ×"])):
        row = page.row("frontier", name)
        assert row[1:3] == over
        assert row[-1] == "100"
    kept = quality_kept(load_results(complete, settings_of()), Key(PRIMARY, "0", "finetuned"))
    assert page.row("frontier", "speed-1.2")[-1] == percent_of(kept)
    for rival, (speed, before) in RIVALS.items():
        row = page.row("frontier", f"parent in {rival.removeprefix('uniform-')}")
        assert row[1:4] == [f"{1.003 * speed:.3f} ×", f"{speed:.3f} ± 0.008 ×", f"{1.003 * speed / PACKED:.3f} ×"]
        assert float(row[5].split(" ± ")[0]) == pytest.approx(0.72 * before, rel=0.02)


@pytest.mark.parametrize(("precision", "winner"), [("bf16", "the rival is"), ("int8", "the searched children are")])
def test_verdicts_on_uniform_rivals_are_said_in_words(page, precision, winner):
    sentence = rf"Beside the parent in {precision} [^:]*: at its speed, {winner} closer to the parent; at its KL, "
    assert re.search(rf"{sentence}{winner} faster\.", page.text)


def test_a_child_that_beats_a_rival_in_both_is_named(complete, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "run")
    path = folder / "targets" / PRIMARY / "uniform-int8"
    write_child(path, {"child": (1.5, 4.0), "finetuned": (1.2, 4.0)}, 1.3)
    page = Page(render_page(load_results(folder, settings_of())))
    assert re.search(r"Beside the parent in int8 [^:]*: speed-1\.4 is faster and closer\.", page.text)
    assert [row[-1] for row in page.rows["frontier"] if row[0] == "parent in int8"][1] == "speed-1.4"


def test_rivals_keep_less_quality_by_paired_differences(complete, page):
    results = load_results(complete, settings_of())
    child = Key(PRIMARY, "0", "finetuned")
    rows = {row[0]: row for row in page.rows["tasks"] if len(row) == 6}
    for solution, label in (("uniform-int8", "parent in int8"), ("layers-dropped", f"{PRIMARY}, layers dropped")):
        rival = Key(PRIMARY, solution, "finetuned")
        row = rows[f"{label}, finetuned"]
        assert row[1] == percent_of(quality_kept(results, rival))
        assert row[3] == f"{700 * TASKS_OF[solution]['finetuned']:.0f} of 700"
        difference = quality_difference(results, child, rival)
        assert row[4].startswith(f"+{100 * difference.value:.1f} ± ")
    assert rows[f"{PRIMARY}, finetuned"][4:] == ["–", "–"]


def test_quantized_pieces_show_their_losses_and_roundings(complete, page):
    frame = read_table(complete / "library" / "ffn" / "width-0.5@int8" / "00-29.parquet", LIBRARY)
    row = page.row("training", "FFN width-0.5@int8")
    medians = [frame["bld_loss_before"].median(), frame["bld_loss_after"].median()]
    assert [float(cell) for cell in row[2:4]] == pytest.approx(medians, rel=0.01)
    assert row[4].endswith(f" in layer {frame['bld_loss_after'].idxmax()}")
    assert row[5] == "compensated, smoothing 0.5 (67 %), nearest, smoothing 0.35 (33 %)"
    assert page.row("training", "LM head parent@int8")[1] == "KL, nats/token"
    assert not [row for row in page.rows["training"] if row[0] == "FFN lowrank-144"]


def sentence_with(complete, tmp_path, points):
    """Return the page's text if the chosen child's learning curve has other values at the first points."""
    folder = shutil.copytree(complete, tmp_path / "run")
    path = folder / "targets" / PRIMARY / "0" / "curves.parquet"
    frame = read_table(path, CURVES)
    curve = frame[frame["metric"] == VALIDATION_KL].iloc[: len(points)].assign(value=points)
    write_table(pd.concat([frame[frame["metric"] != VALIDATION_KL], curve]), CURVES, path)
    return Page(render_page(load_results(folder, settings_of()))).text


def test_the_page_says_what_ten_times_the_tokens_would_bring(complete, page):
    frame = read_table(complete / "targets" / PRIMARY / "0" / "curves.parquet", CURVES)
    start = frame[(frame["metric"] == VALIDATION_KL) & (frame["tokens"] == 0)]["value"].item()
    now, then = (number(start * law(tokens)) for tokens in (16384, 163840))
    assert f"ten times the tokens would bring its KL from {now} to {then} [{then} to {then}]" in page.text
    assert 'aria-label="KL over tokens of finetuning by child"' in page.source


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([0.8, 0.7, 0.65], "3 points carry no power law"),
        ([0.8, 0.7, 0.69, 0.685, 0.68, 0.8], "has no predictive power"),
        ([0.8, 0.79, 0.8, 0.79, 0.8, 0.795], "does not show that ten times the tokens would lower its KL of 0.795"),
    ],
)
def test_a_curve_that_promises_nothing_is_said_to(complete, tmp_path, points, said):
    assert said in sentence_with(complete, tmp_path, points)


def test_sources_that_are_not_scored_have_no_row(page):
    assert page.row("costs", "FFN lowrank-144@int8")
    assert not [row for row in page.rows["costs"] if row[0] == "FFN lowrank-144"]
    assert ">lowrank-144@int8</text>" in page.source
    assert ">lowrank-144</text>" not in page.source[page.source.index('id="scores"') : page.source.index('id="costs"')]


def test_costs_name_the_stock_parents_factor(page):
    assert "takes the packed parent’s time × 1.05 (chat, prefill, batch 4), 1.05 (chat, decode, batch 4)." in page.text


def test_scores_stand_beside_true_kl(complete, page):
    rows = [row for row in page.rows["solver"] if len(row) == 4 and row[0] != "model"]
    children = scored_children(load_results(complete, settings_of()))
    assert [float(row[1].replace("−", "-")) for row in rows] == pytest.approx([c.score for c in children], rel=0.01)
    assert f"Spearman’s ρ over all {len(children)} models is" in page.text


@pytest.mark.parametrize("change", ["hub", "float"])
def test_note_on_dequantized_weights_needs_a_gguf_and_int8(complete, tmp_path, page, change):
    note = "they lie on a coarse grid"
    assert note in page.text
    folder = shutil.copytree(complete, tmp_path / "run")
    if change == "hub":
        path = folder / "parent" / "provenance.json"
        path.write_text(path.read_text().replace(".gguf", ""))
    else:
        for path in folder.glob("library/*/*@int8"):
            shutil.rmtree(path)
        for schema, name in ((SCORES, "scores"), (COSTS, "costs/torch")):
            frame = read_table(folder / f"{name}.parquet", schema)
            frame = frame[~frame["variant"].str.endswith("@int8")]
            write_table(frame.to_dict("records"), schema, folder / f"{name}.parquet")
        for path in [*folder.glob("targets/*/*/architecture.json"), *folder.glob("targets/*/solutions/*.json")]:
            path.write_text(path.read_text().replace("@int8", "@bf16"))
    assert note not in render_page(load_results(folder, settings_of()))


def test_layers_dropped_in_a_precision_say_so(complete, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "run")
    path = folder / "targets" / "speed-1.4" / "layers-dropped" / "architecture.json"
    path.write_text(path.read_text().replace('"parent"', '"parent@int8"'))
    page = Page(render_page(load_results(folder, settings_of())))
    assert page.row("measurements", "speed-1.4, layers dropped, int8, finetuned")
    assert page.row("measurements", "speed-1.6, layers dropped, finetuned")


def write_files(folder: Path) -> None:
    """Write the tables of a child and of two files of its parent in llama.cpp; the reference makes 400 tokens/s."""
    files = {
        ("", "", "parent@f16"): (1.0, 1e-5),
        ("", "", "parent@q8_0"): (1.1, 0.005),
        (PRIMARY, "0", "finetuned"): (1.25, 0.4),
    }
    evaluations: dict[str, list[dict]] = {"parent_engine.parquet": [], f"targets/{PRIMARY}/0/engine.parquet": []}
    speeds = []
    for (target, solution, model), (speedup, kl) in files.items():
        row = {"model": model, "standard_error": None, "n": 5}
        evaluations[list(evaluations)[bool(target)]] += [
            {**row, "task": "file", "metric": "bytes", "value": 1.3e8},
            {**row, "task": "heldout", "metric": "kl", "value": kl, "standard_error": 0.01 * kl},
        ]
        values = {"throughput": 400 * speedup, "speedup": speedup, "time_to_first_token": 0.25}
        values |= {"throughput_at_1": 100 * speedup, "throughput_at_8": 400 * speedup}
        for metric in [metric for metric in values if speedup != 1 or metric != "speedup"]:
            measured = {"metric": metric, "value": values[metric], "standard_error": 0.01 * values[metric]}
            speeds.append({**row, "target": target, "solution": solution, "task": "chat", **measured})
    for path, rows in evaluations.items():
        write_table(rows, EVALUATION, folder / path)
    write_table(speeds, SPEEDS, folder / "speeds" / "llama.cpp.parquet")


def test_files_stand_beside_each_other_in_their_engine(complete, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "run")
    write_files(folder)
    settings = settings_of().model_copy(update={"engines": {PRIMARY: "llama.cpp"}})
    results = load_results(folder, settings)
    assert load_results(folder).settings.engines == settings.engines
    page = Page(render_page(results))
    predicted = results.solutions[PRIMARY, "0"]["scenarios"]["chat"]["speedup"]
    child = page.row("engine", PRIMARY)
    assert child[:2] == [PRIMARY, "130"]
    assert child[3:6] == [
        f"{predicted:.3f}",
        "1.250 ± 0.013",
        f"{100 * (predicted / 1.25 - 1):+.1f} %".replace("-", "−"),
    ]
    assert page.row("engine", "parent, Q8_0")[3:5] == ["–", "1.100 ± 0.011"]
    assert page.row("engine", "parent, F16")[3:7] == ["–", "1.00", "–", "400 ± 4"]
    assert page.row("engine", "parent, F16")[:1] == ["parent, F16"]
    sweep = page.rows["engine"][-6:]
    assert [row[0] for row in sweep[::2]] == ["parent, F16", "parent, Q8_0", PRIMARY]
    assert [row[:3] for row in sweep[:2]] == [["parent, F16", "1", "100.0 ± 1.0"], ["parent, F16", "8", "400 ± 4"]]
    text = summary_text(results)
    error = f"{predicted / 1.25 - 1:+.1%}".replace("+", r"\+")
    line = rf"^{re.escape(PRIMARY)} +{predicted:.3f} +1\.250 ± 0\.013 +{error} +0\.400 ± 0\.004 +130$"
    assert re.search(line, text.split("in llama.cpp")[1], re.MULTILINE)
    assert re.search(r"^parent, Q8_0 +– +1\.100 ± 0\.011 +– +", text, re.MULTILINE)
    assert not [row for row in page.rows["speed"] if row[0] == PRIMARY], "predictions there are not of torch"
    assert "1.25 × as fast as the F16 parent in llama.cpp" in page.text
    assert f"measured 1.250 ± 0.013; predicted {predicted:.3f}" in page.text.replace("\u00a0", " ")


def test_a_child_in_vllm_stands_beside_its_parent(complete, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "run")
    write_files(folder)
    speeds = read_table(folder / "speeds" / "llama.cpp.parquet", SPEEDS)
    speeds.loc[speeds["model"] == "parent@f16", "model"] = "parent"
    rows = speeds[speeds["model"] != "parent@q8_0"].to_dict("records")
    write_table(rows, SPEEDS, folder / "speeds" / "vllm.parquet")
    for path in (f"targets/{PRIMARY}/0/engine.parquet", "parent_engine.parquet", "speeds/llama.cpp.parquet"):
        (folder / path).unlink()
    results = load_results(folder, settings_of().model_copy(update={"engines": {PRIMARY: "vllm"}}))
    assert load_results(folder).settings.engines == {PRIMARY: "vllm"}
    page = Page(render_page(results))
    predicted = results.solutions[PRIMARY, "0"]["scenarios"]["chat"]["speedup"]
    assert page.row("engine", PRIMARY)[:3] == [PRIMARY, f"{predicted:.3f}", "1.250 ± 0.013"]
    assert page.row("engine", "parent")[:5] == ["parent", "–", "1.00", "–", "400 ± 4"]
    lines = summary_text(results).split("\nin vllm ")[1].splitlines()
    assert re.search(r"over the parent: predicted +measured +error$", lines[0])
    assert re.search(r"^parent +– +1\.00 +–$", lines[1])
    assert re.search(rf"^{re.escape(PRIMARY)} +{predicted:.3f} +1\.250 ± 0\.013 ", lines[2])


def test_a_run_in_torch_alone_has_no_such_section(page):
    assert "engine" not in page.rows
    assert "In your engine" not in page.text


def test_trials_have_a_section_only_if_there_are_any(complete, page, tmp_path):
    assert "trials" not in page.rows
    folder = shutil.copytree(complete, tmp_path / "run")
    shared = {"draws": 3, "sequences": 8, "kl_before": 0.9, "standard_error": 0.02}
    shared |= {"change": -0.3, "change_low": -0.4, "change_high": -0.2}
    nothing = {"difference": None, "difference_low": None, "difference_high": None}
    worse = {"difference": 0.1, "difference_low": 0.05, "difference_high": 0.15}
    rows = [
        {"candidate": "own", "heldout": "heldout", "kl": 0.6, "verdict": "best", **nothing, **shared},
        {"candidate": "docs", "heldout": "heldout", "kl": 0.7, "verdict": "worse", **worse, **shared},
        {"candidate": "own", "heldout": "own", "kl": 0.5, "verdict": None, **nothing, **shared},
    ]
    write_table(rows, TRIALS, folder / "trials.parquet")
    shown = Page(render_page(load_results(folder, settings_of()))).rows["trials"]
    assert ["own", "the run’s", "0.900", "0.600 ± 0.020", "-0.300 (-0.400 to -0.200)", "–", "best"] in shown
    assert shown[-2][5:] == ["+0.100 (+0.050 to +0.150)", "worse"]
    assert shown[-1][:2] == ["own", "its own"]
    assert shown[-1][-2:] == ["–", "–"]


def test_batches_within_a_memory_limit_have_their_own_table(complete, page):
    assert "Batch sizes within a limit on memory" not in page.text
    results = load_results(complete, settings_of())
    entry = dict(results.solutions[PRIMARY, "0"])
    own = {**entry["scenarios"]["chat"], "batch": 16, "memory": 640e6, "speedup": 3.0}
    other = {**results.stock[PRIMARY]["scenarios"]["chat"], "batch": 4, "memory": 650e6}
    limit = {"quantity": "memory", "scenario": "chat", "limit": 700e6, "value": 640e6, "slack": 60e6, "max": 700e6}
    changed = {**entry, "scenarios": {"chat": own}, "constraints": [*entry["constraints"], limit]}
    rows = [
        {"target": target, "solution": solution, "model": model, "task": "chat", "metric": f"throughput_at_{batch}"}
        | {"value": value, "standard_error": 0.01 * value, "n": 7}
        for target, solution, model, batch, value in [("", "", "parent", 4, 400.0), (PRIMARY, "0", "child", 16, 1000.0)]
    ]
    speeds = pd.concat([results.speeds, pd.DataFrame(rows)], ignore_index=True)
    results = replace(
        results,
        solutions={**results.solutions, (PRIMARY, "0"): changed},
        stock={**results.stock, PRIMARY: {"scenarios": {"chat": other}}},
        speeds=speeds,
    )
    (table,) = (part for part in speed_section(results).parts if "memory" in (part.title or ""))
    ((name, scenario, *cells),) = table.rows
    assert (name, scenario) == (PRIMARY, "chat")
    assert cells == ["700", "4", "650", "16", "640", "3.000 ×", "2.500 ± 0.035 ×", "+20.0 %"]
