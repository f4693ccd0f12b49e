"""A run with a child of two rounds and one selected by short finetunings, with the real `snakemake` command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import Run, snakemake

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def iterated(run: Run, copy_of_run: Callable[[], Path]) -> Run:
    """The finished run with other targets, for which only the outputs before the search exist."""
    folder = copy_of_run()
    shutil.rmtree(folder / "results" / "tiny" / "targets")
    limits = {"constraints": [{"quantity": "parameters", "max": 0.8}], "compare_layers_dropped": False}
    selection = {"metric": "finetuned", "tokens": 256, "prompt_tokens": 16}
    targets = {
        "small": {**limits, "rounds": 2, "compare_uniform": False},
        "compared": {**limits, "solutions": 3, "max_shared": 0.7, "selection": selection},
    }
    config = run.config | {"evaluation": {}, "targets": targets}
    done = snakemake(folder, config, "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(folder, config, done.stdout + done.stderr)


def test_the_last_child_goes_on_from_the_rounds(iterated: Run) -> None:
    target = iterated.results / "targets" / "small"
    base, child, finetuned = (
        json.loads((target / folder / "provenance.json").read_text())
        for folder in ("rounds/child", "0/child", "0/finetuned")
    )
    assert child["sources"]["base"] == base["model_safetensors_sha256"]
    (first,) = base["rounds"]
    assert first["finetune_tokens"] + finetuned["finetune_tokens"] == 256
    (last,) = json.loads((target / "rounds" / "solution.json").read_text())["solutions"]
    assert child["architecture"] == {"layers": last["layers"], "head": last["head"]}
    assert not (iterated.results / "checkpoints" / "small").exists() or not any(
        (iterated.results / "checkpoints" / "small").iterdir()
    )


def test_the_selected_child_was_best_after_training(iterated: Run) -> None:
    target = iterated.results / "targets" / "compared"
    summary = json.loads((target / "selection" / "summary.json").read_text())
    last = summary["finetuned"][-1]["kl"]
    assert len(last) == 2
    assert last[str(summary["selected"])] == min(last.values())
    winner = json.loads((target / "candidates.json").read_text())["candidates"][summary["selected"]]
    assert json.loads((target / "0" / "architecture.json").read_text()) == winner


def test_a_second_run_does_nothing_and_the_report_shows_both(iterated: Run) -> None:
    done = iterated.snakemake("--cores", "2")
    assert "Nothing to be done" in done.stdout + done.stderr
    page = (iterated.results / "report.html").read_text()
    assert "Rounds" in page
    assert "Selected candidates" in page


def test_more_rounds_train_the_children_of_their_target_only(iterated: Run) -> None:
    targets = iterated.config["targets"]
    config = iterated.config | {"targets": targets | {"small": targets["small"] | {"rounds": 3}}}
    done = iterated.snakemake("-n", config=config)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "iterate_child: " in printed
    assert "solve_mip: " not in printed
    assert "select_child: " not in printed
