"""The output of `make`, from the real `snakemake` command into a pipe."""

import re
from pathlib import Path

import pytest
from tiny_run import snakemake

LAST = r"(\d) jobs? done in \d+ s; full log: (\S+\.snakemake\.log)"


@pytest.mark.slow
def test_a_run_shows_stages_or_the_error_and_names_its_log(tiny_config: dict, tmp_path: Path) -> None:
    text = tmp_path / "short.jsonl"
    text.write_text('{"text": "Too short."}\n')
    corpus = tiny_config["corpus"] | {"score": {"tokens": 128, "sources": [{"type": "local", "paths": [str(text)]}]}}
    config, shown = tiny_config | {"corpus": corpus}, ("--logger", "tangram", "--cores", "2")

    done = snakemake(tmp_path, config, *shown, "results/tiny/parent/config.json")
    assert done.returncode == 0, done.stderr
    first, stage, last = done.stderr.splitlines()
    assert first == "1 job"
    assert re.fullmatch(r"fetch_parent +1 job +\d+ s   \(1/1, 0 s left\)", stage)
    count, log = re.fullmatch(LAST, last).groups()  # type: ignore[union-attr]
    assert count == "1"
    assert "Job 0: fetch_parent: " in Path(log).read_text(), "Snakemake's own words"
    assert "run tiny" in done.stdout, "the summary"

    failed = snakemake(tmp_path, config, *shown, "results/tiny/corpus/score.parquet")
    assert failed.returncode == 1
    first, error, job, hint, last = failed.stderr.splitlines()
    (said,) = re.findall(r"^error: .*", (tmp_path / "results/tiny/logs/build_corpus/score.log").read_text(), re.M)
    assert error == said
    assert job == "  build_corpus score returned non-zero exit status 1; log: results/tiny/logs/build_corpus/score.log"
    assert hint.startswith("a job failed, see results/tiny/logs; the same command goes on")
    count, log = re.fullmatch(LAST, last).groups()  # type: ignore[union-attr]
    assert count == "0"
    assert f"\n{error}\n" in Path(log).read_text(), "what the job itself printed"
