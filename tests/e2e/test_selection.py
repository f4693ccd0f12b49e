"""A run that selects one of three candidates, on a tiny Llama with the real `snakemake` command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import Run, snakemake

from tangram.files import sha256_of
from tangram.tables import SELECTION, read_table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def selected(run: Run, copy_of_run: Callable[[], Path]) -> Run:
    """The finished run with another target, for which only the outputs before the search exist, and compensation."""
    folder = copy_of_run()
    shutil.rmtree(folder / "results" / "tiny" / "targets")
    small = {"constraints": [{"quantity": "parameters", "max": 0.95}], "solutions": 3, "max_shared": 0.7}
    small |= {"compare_layers_dropped": False, "selection": {"prompt_tokens": 16, "budget": 0.7}}
    config = run.config | {"evaluation": {}, "targets": {"small": small}, "assembly": {"compensate": True}}
    done = snakemake(folder, config, "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(folder, config, done.stdout + done.stderr)


def test_the_winner_is_what_is_finetuned(selected: Run) -> None:
    target = selected.results / "targets" / "small"
    summary = json.loads((target / "selection" / "summary.json").read_text())
    scores = read_table(target / "selection" / "scores.parquet", SELECTION)
    assert len(scores) == summary["evaluated"] < summary["candidates"] * summary["prompts"]
    candidates = json.loads((target / "candidates.json").read_text())["candidates"]
    assert len(candidates) == 3
    winner = candidates[summary["selected"]]
    assert json.loads((target / "0" / "architecture.json").read_text()) == winner
    assert (target / "0" / "finetuned" / "model.safetensors").exists()
    assert not (target / "1").exists()
    assert not (selected.results / "checkpoints" / "small" / "selection.npz").exists()


def test_the_child_is_compensated_on_the_distill_split(selected: Run) -> None:
    made = json.loads((selected.results / "targets" / "small" / "0" / "child" / "provenance.json").read_text())
    assert made["sources"]["corpus"] == sha256_of(selected.results / "corpus" / "distill.parquet")


def test_the_second_run_does_nothing(selected: Run) -> None:
    done = selected.snakemake("--cores", "2")
    assert "Nothing to be done" in done.stdout + done.stderr


def test_a_search_with_the_same_answers_selects_nothing_again(selected: Run) -> None:
    config = selected.config | {"search": {"time_limit": 59}}
    printed = selected.snakemake("--cores", "2", config=config)
    assert printed.returncode == 0, printed.stderr
    assert "select_child: " not in printed.stdout + printed.stderr
    assert "finetune_child: " not in printed.stdout + printed.stderr


def test_the_report_tells_of_the_selection(selected: Run) -> None:
    page = Path(selected.results / "report.html").read_text()
    assert "Selected candidates" in page
    assert "paired-halving" in page
