"""Partial reruns of a finished run, in the order of the file: what a change costs, and what it must not cost."""

import re

import pytest
from tiny_run import Run

pytestmark = pytest.mark.slow


def ran(printed: str) -> set[str]:
    """Return the rules that a run executed."""
    return set(re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):", printed, re.MULTILINE)) - {"all"}


def test_a_search_with_the_same_answer_trains_nothing_again(run: Run) -> None:
    """A solver's setting changes, and the answer does not."""
    done = run.snakemake("--cores", "2", config=run.config | {"search": {"time_limit": 59}})
    assert done.returncode == 0, done.stderr
    assert ran(done.stdout + done.stderr) == {"solve_mip", "pick_pieces", "build_report"}
    again = run.snakemake("--cores", "2", config=run.config | {"search": {"time_limit": 59}})
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_deleted_piece_is_made_again_and_a_child_of_equal_pieces_is_not(run: Run) -> None:
    """Distillation is deterministic: the piece comes out the same, so nothing is assembled or trained."""
    (run.results / "library" / "ffn" / "linear" / "00-02.safetensors").unlink()
    done = run.snakemake("--cores", "2", config=run.config | {"search": {"time_limit": 59}})
    assert done.returncode == 0, done.stderr
    rules = ran(done.stdout + done.stderr)
    assert {"distill_blocks", "score_blocks", "pick_pieces"} <= rules
    assert not rules & {"assemble_child", "finetune_child", "evaluate_model", "measure_costs", "build_corpus"}
