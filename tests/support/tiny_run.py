"""The real `snakemake` command in a folder of its own."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import yaml
from warm_snakemake import PROGRAM, warm_snakemake

ROOT = Path(__file__).parents[2]

# What fault tests make again: one trained piece, and one finetuned child.
PIECE = "results/tiny/library/attention/gqa-1/00-02.safetensors"
PIECE_FILES = [PIECE, PIECE.replace(".safetensors", ".parquet"), PIECE.replace(".safetensors", ".curves.parquet")]
CURVES = "results/tiny/targets/small/0/curves.parquet"
CHILD_FILES = [CURVES, "results/tiny/targets/small/0/finetuned/model.safetensors"]


def shown_jobs(printed: str) -> list[tuple[str, str]]:
    """Return the jobs that Snakemake ran or planned: each one's rule, and its message, which ends with its wildcards.

    Snakemake shows a rule's message or, if it has none, its name and files.
    """
    shown = r"^Job \d+: (\w+): (.*)$|^(?:local)?(?:rule|checkpoint) (\w+):\n((?:    .*\n)*)"
    found = re.findall(shown, printed, re.MULTILINE)
    return [(rule or named, message or body) for rule, message, named, body in found if "all" not in (rule, named)]


@dataclass(frozen=True)
class Run:
    """A finished run: where it is, what configured it, and what the first command printed."""

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
    """Run the repository's Snakefile in ``folder``, as a user would; ``root`` may be a copy of the repository."""
    complete = _arguments(folder, config, root, arguments)
    environment = (environment or os.environ) | {"HF_HUB_OFFLINE": "1"}
    if "-n" in arguments:
        return warm_snakemake(*complete, folder=root, environment=environment)
    return subprocess.run([PROGRAM, *complete], cwd=root, capture_output=True, text=True, env=environment, timeout=1800)


def start(
    folder: Path, config: dict, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start the same command in a session of its own, with what it prints in ``folder/printed``."""
    with open(folder / "printed", "a") as printed:
        return subprocess.Popen(
            [PROGRAM, *_arguments(folder, config, ROOT, arguments)],
            cwd=ROOT,
            stdout=printed,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=(environment or os.environ) | {"HF_HUB_OFFLINE": "1"},
        )


def recover(folder: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the documented recovery."""
    command = [sys.executable, "-m", "tangram.tools.recover", "--directory", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def resumed(printed: str) -> bool:
    """Say whether a job went on from what a killed one had left: a training's state, or a finished layer."""
    return "resuming from step" in printed or "was finished before a kill" in printed


def jobs_in(folder: Path, command: str) -> list[psutil.Process]:
    """Return the processes in a folder that run a command of the package (not the shells around it)."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder and f"tangram.commands.{command}" in process.cmdline():
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def wait_for(what: Callable[[], object], seconds: float = 300) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def content(path: Path) -> object:
    """Return what a deterministic output holds: its bytes, or a table's columns without measured seconds."""
    if path.suffix != ".parquet":
        return path.read_bytes()
    table = pq.read_table(path)
    measured = [name for name in table.column_names if name.endswith("seconds")]
    return table.drop_columns(measured).to_pydict()
