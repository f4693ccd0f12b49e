"""Make a folder usable again after its Snakemake was killed: `tangram recover`, then the same command.

A killed Snakemake leaves a lock, and jobs that live on: its own children on this machine, or SLURM's on others. Started
anew beside them it would run the same jobs twice, so they end first. An output that no Snakemake was left to record is
removed, as nobody knows its settings and code any more: its job may have ended in between, or was under way. All others
stay; killed jobs go on from their checkpoints.
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
    program = [Path(word).name for word in command[:3]]  # `python -m snakemake`, too
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
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise TangramError(
                f"jobs were submitted to SLURM from {folder}, and squeue cannot be run here ({error.strerror}); run "
                f"this on a login node, or delete {folder / '.snakemake' / 'slurm_logs'} if none of them can be left"
            ) from error
        if done.returncode:
            raise TangramError(f"squeue failed ({done.stderr.strip()}); run this again when SLURM answers")
        rows = [line.split("|", 1) for line in done.stdout.splitlines()]
        return sorted({number for number, where in rows if Path(where).resolve() == folder})

    found = jobs()
    if found:
        subprocess.run(["scancel", *found], check=False)
        _wait(f"SLURM jobs {', '.join(found)}", 120, lambda: not jobs())
    return found


def _records(folder: Path) -> dict[str, Path]:
    """Return the files that Snakemake keeps in a folder, one for each output, by the output's name.

    Their own name is that one in URL-safe base64, in parts that begin with ``@`` (but for the last) if it is long.
    """
    found = {}
    for path in folder.rglob("*"):
        words = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
        try:
            name = base64.urlsafe_b64decode(words).decode()
        except ValueError:  # no record
            continue
        if path.is_file():
            found[name] = path
    return found


def _modified(output: Path) -> float:
    """Return the time of an output, as Snakemake takes it."""
    stamp = output / ".snakemake_timestamp"
    return (stamp if stamp.exists() else output).lstat().st_mtime


def _describes(record: Path | None, output: Path) -> bool:
    """Say whether Snakemake's record of an output is of what is there now, and not of what was there before."""
    try:
        return record is not None and json.loads(record.read_text())["endtime"] == _modified(output)
    except (ValueError, KeyError, TypeError):  # cut short by the kill
        return False


def unrecorded_outputs(folder: Path) -> list[str]:
    """Return the names of outputs that jobs of a killed Snakemake wrote, and that it did not live to record.

    Snakemake marks an output as incomplete from its job's start until its settings, code and inputs are recorded. But a
    job on SLURM takes the mark away itself when it ends. So whatever the killed Snakemake had locked, and is newer than
    the lock, needs a record, too.
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
    directory: Annotated[Path, typer.Option(help="where Snakemake ran")] = Path("."),
) -> None:
    """End what a killed Snakemake left running, here and on SLURM, remove what nobody recorded, unlock its folder."""
    folder = directory.resolve()
    state = folder / ".snakemake"
    if not state.exists():
        print(f"{folder}: no Snakemake ran here, so there is nothing to do; --directory names another folder")
        return
    ended = end_local_jobs(folder)
    cancelled = end_slurm_jobs(folder)
    removed = unrecorded_outputs(folder)
    try:
        for name in removed:
            print(f"removed {name}: it was not recorded, and is made again")
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
