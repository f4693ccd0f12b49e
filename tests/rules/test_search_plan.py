"""The plan with other searches: one job each, and one child like every rival's."""

import copy
from collections import Counter
from pathlib import Path

import pytest
import yaml
from tiny_run import shown_jobs
from warm_snakemake import warm_snakemake

from tangram.config import LIGHT_SEARCHES, SEARCHES

ROOT = Path(__file__).parents[2]
DEFAULT = yaml.safe_load((ROOT / "config" / "smollm2-structure.yaml").read_text())
pytestmark = pytest.mark.slow


def test_every_search_has_a_job_and_a_child(tmp_path: Path) -> None:
    config = copy.deepcopy(DEFAULT)
    config["targets"] = {"speed-1.2": config["targets"]["speed-1.2"] | {"compare": list(SEARCHES)}}
    config["assembly"] = {"compensate": True}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    options = ["--directory", tmp_path, "--configfile", tmp_path / "config.yaml"]
    done = warm_snakemake("--snakefile", ROOT / "Snakefile", "-np", *options, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout + done.stderr
    jobs = Counter(rule for rule, _ in shown_jobs(printed))
    assert jobs["search_rival"] == len(LIGHT_SEARCHES)
    assert jobs["drop_by_influence"] == jobs["evolve_child"] == jobs["solve_mip"] == 1
    children = 2 + len(SEARCHES)  # the solver's, and layers dropped by scores
    for rule in ("pin_architecture", "assemble_child", "finetune_child", "evaluate_model", "evaluate_tasks"):
        assert jobs[rule] == children
    assert printed.count("--corpus=results") == children - 1  # random weights are not fitted
