"""Trials of text through Snakemake: before a run, and what a new candidate reruns."""

import json
from collections import Counter
from pathlib import Path

import pytest
from tiny_run import shown_jobs, snakemake

from tangram.tables import TRIALS, read_table

pytestmark = pytest.mark.slow


def test_texts_are_compared_before_a_run(tiny_config: dict, tmp_path: Path) -> None:
    stories = tmp_path / "stories.jsonl"
    texts = [f"Story {i} tells of the number {i}. " + "It goes on. " * 40 for i in range(99)]
    stories.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sources = {"own": {"type": "parent-samples"}, "docs": {"type": "python-docs"}}
    trials = {"sources": sources, "tokens": 128, "heldout_tokens": 64, "draws": 2}
    config = tiny_config | {"text_trials": trials}
    done = snakemake(tmp_path, config, "--cores", "2", "try_texts")
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    jobs = Counter(rule for rule, _ in shown_jobs(printed))
    assert set(jobs) == {"fetch_parent", "build_corpus", "capture_activations", "try_text", "try_texts"}
    assert (jobs["build_corpus"], jobs["try_text"]) == (1, 4)
    table = tmp_path / "results" / "tiny" / "trials.parquet"
    assert set(read_table(table, TRIALS)["candidate"]) == {"own", "docs"}
    assert printed.count("try_texts: own is the best") + printed.count("try_texts: docs is the best") == 1 or (
        "try_texts: a tie of " in printed
    )

    more = trials | {"sources": sources | {"stories": {"type": "local", "paths": [str(stories)]}}, "draws": 2}
    planned = snakemake(tmp_path, config | {"text_trials": more}, "-n", "try_texts")
    shown = [(rule, job) for rule, job in shown_jobs(planned.stdout + planned.stderr)]
    assert sorted(rule for rule, _ in shown) == ["try_text", "try_text", "try_texts"]
    assert all("text=stories" in job for rule, job in shown if rule == "try_text")
    slower = config | {"finetune": tiny_config["finetune"] | {"learning_rate": 1e-5}}
    planned = snakemake(tmp_path, slower, "-n", "try_texts")
    assert Counter(rule for rule, _ in shown_jobs(planned.stdout + planned.stderr))["try_text"] == 4


def test_a_run_without_candidates_is_one_clear_line(tiny_config: dict, tmp_path: Path) -> None:
    done = snakemake(tmp_path, tiny_config, "--cores", "1", "try_texts")
    assert done.returncode != 0
    assert "error: text_trials.sources is empty; name at least two texts to compare" in done.stdout + done.stderr
