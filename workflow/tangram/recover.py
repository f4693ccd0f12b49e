"""Make a folder usable again after its Snakemake was killed: `python -m tangram.recover`, then the same command.

A killed Snakemake leaves a lock, and jobs that live on: its own children on this machine, or SLURM's on others. Started
anew beside them it would run the same jobs twice, so they end first. Finished files stay; killed jobs go on from their
checkpoints.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tangram.cli import run
from tangram.errors import TangramError

if TYPE_CHECKING:
    import psutil


def _processes_in(folder: Path) -> Iterator[tuple[psutil.Process, list[str]]]:
    """Yield the processes that work in a folder, with their command lines."""
    import psutil

    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and Path(process.cwd()) == folder:
                yield process, process.cmdline()
        except (psutil.Error, OSError):  # it is gone, or another user's
            continue


def _runs_snakemake(command: list[str]) -> bool:
    """Say whether a command line is a main Snakemake's, and not that of one of its jobs."""
    program = [Path(word).name for word in command[:2]]
    return "snakemake" in program and "--mode" not in command


def _wait(what: str, seconds: float, gone: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not gone():
        if time.monotonic() > deadline:
            raise TangramError(f"{what} did not end within {seconds:g} s; end them by hand, then run this again")
        time.sleep(0.2)


def end_local_jobs(folder: Path) -> list[str]:
    """End the jobs of a killed Snakemake on this machine, and return what they ran.

    Raises:
        TangramError: a Snakemake is at work in the folder, or a job does not end.
    """
    import psutil

    found = list(_processes_in(folder))
    for process, command in found:
        if _runs_snakemake(command):
            raise TangramError(
                f"Snakemake is at work in {folder} (process {process.pid}); wait for it, or stop it first"
            )
    jobs = [
        (process, command)
        for process, command in found
        if any("tangram.commands." in word for word in command)  # the job, and the shell around it
    ]
    for process, _ in jobs:
        process.terminate()
    _, alive = psutil.wait_procs([process for process, _ in jobs], timeout=10)
    for process in alive:
        process.kill()
    _, alive = psutil.wait_procs(alive, timeout=10)
    if alive:
        raise TangramError(
            f"processes {[process.pid for process in alive]} do not end; end them by hand, then try again"
        )
    return [next(word for word in command if "tangram.commands." in word)[:60] for _, command in jobs]


def end_slurm_jobs(folder: Path) -> list[str]:
    """Cancel the SLURM jobs that were submitted from a folder, wait for their end, and return their numbers.

    Raises:
        TangramError: SLURM does not answer, or the jobs do not end within two minutes.
    """
    if not (folder / ".snakemake" / "slurm_logs").exists():  # nothing was ever submitted from here
        return []

    def jobs() -> list[str]:
        command = ["squeue", "--noheader", "--array", "--format=%A|%Z"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise TangramError(f"squeue failed ({done.stderr.strip()}); run this again when SLURM answers")
        rows = [line.split("|", 1) for line in done.stdout.splitlines()]
        return sorted({number for number, where in rows if Path(where) == folder})

    found = jobs()
    if found:
        subprocess.run(["scancel", *found], check=False)
        _wait(f"SLURM jobs {', '.join(found)}", 120, lambda: not jobs())
    return found


def recover(
    directory: Annotated[Path, typer.Option(help="where Snakemake ran")] = Path("."),
) -> None:
    """End what a killed Snakemake left running, here and on SLURM, and unlock its folder."""
    folder = directory.resolve()
    ended = end_local_jobs(folder)
    cancelled = end_slurm_jobs(folder)
    for path in (folder / ".snakemake" / "locks").glob("*"):
        path.unlink()
    print(f"{folder}: {len(ended)} local and {len(cancelled)} SLURM jobs ended, unlocked; give the same command again")


if __name__ == "__main__":
    run(recover)
