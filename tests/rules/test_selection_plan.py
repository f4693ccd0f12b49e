"""The plan with selection or rounds: one child is assembled and finetuned, whatever is compared or trained before."""

import copy
from collections import Counter
from pathlib import Path

import pytest
import yaml
from tiny_run import shown_jobs
from warm_snakemake import warm_snakemake

ROOT = Path(__file__).parents[2]
DEFAULT = yaml.safe_load((ROOT / "config" / "smollm2-structure.yaml").read_text())
pytestmark = pytest.mark.slow


def plan(config: dict, folder: Path) -> Counter[str]:
    """Return the number of jobs by rule in an empty folder."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    options = ["--directory", folder, "--configfile", folder / "config.yaml"]
    done = warm_snakemake("--snakefile", ROOT / "Snakefile", "-n", *options, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return Counter(rule for rule, _ in shown_jobs(done.stdout + done.stderr))


def test_one_child_of_many_candidates_is_finetuned(tmp_path: Path) -> None:
    config = copy.deepcopy(DEFAULT)
    config["targets"] = {"speed-1.2": config["targets"]["speed-1.2"] | {"solutions": 6, "selection": {}}}
    jobs = plan(config, tmp_path)
    assert jobs["select_child"] == 1
    assert jobs["pin_candidates"] == 1
    assert jobs["pin_architecture"] == 2  # the winner and the plain baseline
    assert jobs["assemble_child"] == jobs["finetune_child"] == jobs["evaluate_model"] == 2


def test_without_a_selection_nothing_is_selected(tmp_path: Path) -> None:
    assert plan(DEFAULT, tmp_path)["select_child"] == 0


def test_finetuned_candidates_need_the_finetune_split(tmp_path: Path) -> None:
    config = copy.deepcopy(DEFAULT)
    selection = {"metric": "finetuned", "tokens": 10_000}
    config["targets"] = {"speed-1.2": config["targets"]["speed-1.2"] | {"solutions": 6, "selection": selection}}
    jobs = plan(config, tmp_path)
    assert jobs["select_child"] == 1
    assert jobs["finetune_child"] == 2


def test_rounds_are_one_job_more(tmp_path: Path) -> None:
    config = copy.deepcopy(DEFAULT)
    config["targets"] = {"speed-1.2": config["targets"]["speed-1.2"] | {"rounds": 3}}
    jobs = plan(config, tmp_path)
    assert jobs["iterate_child"] == 1
    assert jobs["solve_mip"] == 1
    assert jobs["pin_architecture"] == 2
    assert jobs["assemble_child"] == jobs["finetune_child"] == jobs["evaluate_model"] == 2
