"""The real `snakemake` command in a folder of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parents[2]


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


def snakemake(folder: Path, config: dict, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the repository's Snakefile in ``folder``, as a user would."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    command = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile")]
    return subprocess.run(
        [*command, "--directory", str(folder), "--configfile", str(folder / "config.yaml"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )


def start(folder: Path, config: dict, *arguments: str) -> subprocess.Popen[str]:
    """Start the same command in a session of its own, with what it prints in ``folder/printed``."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    command = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile")]
    with open(folder / "printed", "a") as printed:
        return subprocess.Popen(
            [*command, "--directory", str(folder), "--configfile", str(folder / "config.yaml"), *arguments],
            cwd=folder,
            stdout=printed,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )


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


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
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
