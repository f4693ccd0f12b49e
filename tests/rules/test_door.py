"""Files at the root that users and tools expect, and the one entry point."""

import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from warm_snakemake import warm_snakemake

from tangram import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_licence_is_the_same_everywhere():
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "Apache-2.0"


def test_the_version_is_the_same_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_contributing_is_read_in_a_minute():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 60


def test_the_entry_point_has_what_people_run_beside_snakemake():
    command = [sys.executable, "-m", "tangram"]
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0, helped.stderr
    assert all(f" {name} " in helped.stdout for name in ("plan", "recover", "summary"))
    mistaken = subprocess.run([*command, "plan", "--config", "no/such.yaml"], capture_output=True, text=True)
    assert mistaken.returncode == 1
    assert mistaken.stderr.startswith("error: no/such.yaml: ")
    assert mistaken.stderr.count("\n") == 1


def test_the_catalog_s_snakefile_makes_what_the_root_s_does(tmp_path):
    def plan(snakefile: str) -> list[list[str]]:
        done = warm_snakemake("--snakefile", ROOT / snakefile, "-n", "--directory", tmp_path, folder=ROOT)
        assert done.returncode == 0, done.stderr
        counts = done.stdout.partition("Job stats:\n")[2].partition("\n\n")[0].splitlines()
        return [line.split() for line in counts if line.split()[0] not in ("default", "total", "all")]

    assert plan("workflow/Snakefile") == plan("Snakefile")


def test_continuous_integration_elsewhere_runs_the_same_command():
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yaml").read_text())["jobs"]["test"]["steps"]
    assert steps[-1]["run"] == "make test"
    for name in (".pre-commit-config.yaml", ".snakemake-workflow-catalog.yml"):
        assert yaml.safe_load((ROOT / name).read_text())
