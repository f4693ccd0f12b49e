"""The real `snakemake` command in a run's folder."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import yaml
from warm_jobs import OFFLINE, environment_of_warm_jobs
from warm_snakemake import PROGRAM, warm_snakemake

ROOT = Path(__file__).parents[2]

# Outputs that fault tests make again: one trained piece, and one finetuned child.
PIECE = "results/tiny/library/attention/gqa-1/00-02.safetensors"
PIECE_FILES = [PIECE, PIECE.replace(".safetensors", ".parquet"), PIECE.replace(".safetensors", ".curves.parquet")]
CURVES = "results/tiny/targets/small/0/curves.parquet"
CHILD_FILES = [CURVES, "results/tiny/targets/small/0/finetuned/model.safetensors"]


def shown_jobs(printed: str) -> list[tuple[str, str]]:
    """Return the jobs that Snakemake ran or planned, as (rule, message); the message ends with the wildcards.

    For a rule without a message, Snakemake prints its name and files.
    """
    pattern = r"^Job \d+: (\w+): (.*)$|^(?:local)?(?:rule|checkpoint) (\w+):\n((?:    .*\n)*)"
    jobs = re.findall(pattern, printed, re.MULTILINE)
    return [(rule or named, message or body) for rule, message, named, body in jobs if "all" not in (rule, named)]


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its config, and the output of the first command."""

    folder: Path
    config: dict
    printed: str

    @property
    def results(self) -> Path:
        return self.folder / "results" / self.config["run"]

    def snakemake(self, *arguments: str, config: dict | None = None) -> subprocess.CompletedProcess[str]:
        """Run `snakemake` in the run's folder, with the run's config or another."""
        return snakemake(self.folder, config or self.config, *arguments)


def _arguments(folder: Path, config: dict, root: Path, arguments: tuple[str, ...]) -> list[str]:
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    where = ["--snakefile", str(root / "Snakefile"), "--directory", str(folder)]
    return [*where, "--configfile", str(folder / "config.yaml"), *arguments]


def snakemake(
    folder: Path, config: dict, *arguments: str, environment: dict[str, str] | None = None, root: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run the repository's Snakefile in ``folder``, as users do; ``root`` may be a copy of the repository.

    Without an environment of the test's own, jobs are forked after their imports; see `warm_jobs`.
    """
    complete = _arguments(folder, config, root, arguments)
    if "-n" in arguments:
        return warm_snakemake(*complete, folder=root, environment=(environment or os.environ) | OFFLINE)
    environment = environment or os.environ | environment_of_warm_jobs()
    return subprocess.run(
        [PROGRAM, *complete], cwd=root, capture_output=True, text=True, env=environment | OFFLINE, timeout=1800
    )


def start(
    folder: Path, config: dict, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start the same command in a new session, with its output appended to ``folder/printed``."""
    with open(folder / "printed", "a") as printed:
        return subprocess.Popen(
            [PROGRAM, *_arguments(folder, config, ROOT, arguments)],
            cwd=ROOT,
            stdout=printed,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=(environment or os.environ) | OFFLINE,
        )


def recover(folder: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the documented recovery."""
    command = [sys.executable, "-m", "tangram.tools.recover", "--directory", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def resumed(printed: str) -> bool:
    """Return whether a job resumed from a killed one's training state or finished layers."""
    return "resuming from step" in printed or "was finished before a kill" in printed


def jobs_in(folder: Path, command: str) -> list[psutil.Process]:
    """Return the processes in a folder that run a command of the package, without their shells."""
    processes = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder and f"tangram.commands.{command}" in process.cmdline():
                processes.append(process)
        except (psutil.Error, OSError):
            continue
    return processes


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait until ``condition`` holds.

    Raises:
        AssertionError: it does not hold after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out after {seconds} s"
        time.sleep(0.05)


def content(path: Path) -> object:
    """Return the deterministic content of an output: its bytes, or a table's columns except measured seconds."""
    if path.suffix != ".parquet":
        return path.read_bytes()
    table = pq.read_table(path)
    measured = [name for name in table.column_names if name.endswith("seconds")]
    return table.drop_columns(measured).to_pydict()


def task_archive(folder: Path, task: str, examples: list[dict]) -> dict:
    """Write an archive with one task in BIG-bench's format into the folder of downloads; return its config entry."""
    content = json.dumps({"name": task, "description": task, "examples": examples}).encode()
    archive = folder / ".downloads" / "bigbench-1.0.0.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo(f"bigbench-1.0.0/bigbench/benchmark_tasks/{task}/task.json")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return {
        "package": "bigbench==1.0.0",
        "format": "sdist",
        "archive_sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
    }
