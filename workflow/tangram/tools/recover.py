"""Recover a folder after its Snakemake was killed: `tangram recover`, then the same command.

A killed Snakemake leaves a lock and running jobs: processes on this machine or SLURM jobs. A new Snakemake would run
the same jobs twice, so `recover` ends them first. It removes outputs that Snakemake did not record, because their
settings and code are unknown and they may be incomplete. All other outputs stay; killed jobs resume from their
checkpoints.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
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
    """Yield the processes whose working directory is a folder, with their command lines."""
    import psutil

    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and Path(process.cwd()) == folder:
                yield process, process.cmdline()
        except (psutil.Error, OSError):  # the process ended, or belongs to another user
            continue


def _runs_snakemake(command: list[str]) -> bool:
    """Return whether a command line is a main Snakemake's, and not that of one of its jobs."""
    program = [Path(word).name for word in command[:3]]  # includes `python -m snakemake`
    return "snakemake" in program and "--mode" not in command


def _wait(jobs: str, seconds: float, ended: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not ended():
        if time.monotonic() > deadline:
            raise TangramError(f"{jobs} did not end within {seconds:g} s; end them by hand, then run this again")
        time.sleep(0.2)


def refuse_while_snakemake_runs(folder: Path) -> None:
    """Raise TangramError if a Snakemake runs in a folder."""
    for process, command in _processes_in(folder):
        if _runs_snakemake(command):
            raise TangramError(
                f"Snakemake is at work in {folder} (process {process.pid}); wait for it, or stop it first"
            )


def end_local_jobs(folder: Path) -> list[str]:
    """End the jobs of a killed Snakemake on this machine, and return their commands.

    Raises:
        TangramError: a job does not end.
    """
    import psutil

    jobs = [
        (process, command)
        for process, command in _processes_in(folder)
        if any("tangram.commands." in word for word in command)  # the job and its shell
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
    """Cancel the SLURM jobs that were submitted from a folder, wait for their end, and return their IDs.

    Raises:
        TangramError: SLURM does not answer, or the jobs do not end within two minutes.
    """
    if not (folder / ".snakemake" / "slurm_logs").exists():  # no job was ever submitted from here
        return []

    def jobs() -> list[str]:
        command = ["squeue", "--noheader", "--array", "--format=%A|%Z"]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise TangramError(
                f"jobs were submitted to SLURM from {folder}, and squeue cannot be run here ({error.strerror}); run "
                f"this on a login node, or delete {folder / '.snakemake' / 'slurm_logs'} if no job can be running"
            ) from error
        if done.returncode:
            raise TangramError(f"squeue failed ({done.stderr.strip()}); run this again when SLURM answers")
        rows = [line.split("|", 1) for line in done.stdout.splitlines()]
        return sorted({job_id for job_id, directory in rows if Path(directory).resolve() == folder})

    running = jobs()
    if running:
        subprocess.run(["scancel", *running], check=False)
        _wait(f"SLURM jobs {', '.join(running)}", 120, lambda: not jobs())
    return running


def _records(folder: Path) -> dict[str, Path]:
    """Return Snakemake's record files in a folder, one for each output, by the output's name.

    The path of a record is the output's name in URL-safe base64; a long one is split into parts, all but the last of
    which begin with ``@``.
    """
    records = {}
    for path in folder.rglob("*"):
        words = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
        try:
            name = base64.urlsafe_b64decode(words).decode()
        except ValueError:  # not a record
            continue
        if path.is_file():
            records[name] = path
    return records


def _modified(output: Path) -> float:
    """Return the modification time of an output, as Snakemake defines it."""
    stamp = output / ".snakemake_timestamp"
    return (stamp if stamp.exists() else output).lstat().st_mtime


def _describes(record: Path | None, output: Path) -> bool:
    """Return whether Snakemake's record of an output describes its current content."""
    try:
        return record is not None and json.loads(record.read_text())["endtime"] == _modified(output)
    except (ValueError, KeyError, TypeError):  # truncated by the kill
        return False


def unrecorded_outputs(folder: Path) -> list[str]:
    """Return the names of outputs that jobs of a killed Snakemake wrote and that it did not record.

    Snakemake marks an output as incomplete from its job's start until its settings, code and inputs are recorded, but a
    job on SLURM removes the mark when it ends. So locked outputs that are newer than the lock need a record, too.
    """
    state = folder / ".snakemake"
    names, records = set(_records(state / "incomplete")), _records(state / "metadata")
    for lock in (state / "locks").glob("*.output.lock"):
        begin = lock.stat().st_mtime
        locked = [name for name in lock.read_text().splitlines() if (folder / name).exists()]
        names.update(name for name in locked if _modified(folder / name) >= begin)
    written = sorted(name for name in names if (folder / name).exists())
    return [name for name in written if not _describes(records.get(name), folder / name)]


def recover(
    directory: Annotated[Path, typer.Option(help="folder that Snakemake ran in")] = Path("."),
) -> None:
    """End the running jobs of a killed Snakemake, here and on SLURM, remove unrecorded outputs, unlock its folder."""
    folder = directory.resolve()
    state = folder / ".snakemake"
    if not state.exists():
        print(f"{folder}: no Snakemake ran here, so there is nothing to do; --directory names another folder")
        return
    refuse_while_snakemake_runs(folder)
    # SLURM jobs first: on a machine that is a node, too, a SLURM job's process is also a process on this machine, and
    # ending it would be a failure that SLURM may answer by running the job again.
    cancelled = end_slurm_jobs(folder)
    ended = end_local_jobs(folder)
    removed = unrecorded_outputs(folder)
    try:
        for name in removed:
            print(f"removed {name}: it was not recorded, and the next run makes it again")
            output = folder / name
            shutil.rmtree(output) if output.is_dir() and not output.is_symlink() else output.unlink()
        for path in (*_records(state / "incomplete").values(), *(state / "locks").glob("*")):
            path.unlink()
    except OSError as error:
        raise TangramError(
            f"cannot remove {error.filename}: {error.strerror}; remove it, then run this again"
        ) from error
    print(
        f"{folder}: {len(ended)} local and {len(cancelled)} SLURM jobs ended, {len(removed)} unrecorded files removed, "
        "unlocked; give the same command again"
    )


if __name__ == "__main__":
    run(recover)
