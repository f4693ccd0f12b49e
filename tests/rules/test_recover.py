"""The documented recovery after a kill of a real Snakemake, with jobs that tests control."""

import base64
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tiny_run import recover, wait_for

from tangram.tools.recover import unrecorded_outputs

pytestmark = pytest.mark.slow

DEEP = f"{'deep' * 40}/{'name' * 40}"  # a long path, so that its record is in nested folders
SNAKEFILE = f"""
rule all:
    input: "RUN/a.txt", "RUN/b.txt", "RUN/folder"

rule two:
    output: a="RUN/a.txt", b="RUN/b.txt"
    params: value=config["value"]
    shell: "until [ -e go-a ]; do sleep 0.05; done; echo {{params.value}} > {{output.a}}; "
        "until [ -e go-b ]; do sleep 0.05; done; echo {{params.value}} > {{output.b}}; : tangram.commands.two"

rule folder:
    output: directory("RUN/folder"), "RUN/{DEEP}"
    params: value=config["value"]
    shell: "mkdir -p {{output[0]}}; echo {{params.value}} | tee {{output[1]}} > {{output[0]}}/c.txt"
"""
OUTPUTS = ["a.txt", "b.txt", "folder/c.txt", DEEP]


class Folder:
    """A working directory of Snakemake, whose jobs wait for the file `go`."""

    def __init__(self, path: Path):
        self.path = path
        for run in ("one", "other"):
            (path / f"{run}.smk").write_text(SNAKEFILE.replace("RUN", run))

    def command(self, *arguments: str, run: str, value: str) -> list[str]:
        program = [sys.executable, "-m", "snakemake"]
        return [*program, "--snakefile", f"{run}.smk", "--cores", "2", "--config", f"value={value}", *arguments]

    def snakemake(self, *arguments: str, run: str = "one", value: str = "A") -> subprocess.CompletedProcess[str]:
        command = self.command(*arguments, run=run, value=value)
        return subprocess.run(command, cwd=self.path, capture_output=True, text=True, timeout=120)

    def start(self, run: str = "one", value: str = "A") -> subprocess.Popen[bytes]:
        """Start Snakemake and wait until its jobs run."""
        before = len(self.jobs())
        # A shell's background job ignores SIGINT, and its children inherit that.
        command = ["env", "--default-signal=INT", *self.command(run=run, value=value)]
        with open(self.path / "printed", "a") as printed:
            main = subprocess.Popen(
                command, cwd=self.path, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
            )
        wait_for(lambda: len(self.jobs()) > before, 60)
        return main

    def go(self, *names: str) -> None:
        for name in names:
            (self.path / f"go-{name}").touch()

    def stop(self) -> None:
        for path in self.path.glob("go-*"):
            path.unlink()

    def jobs(self) -> list[psutil.Process]:
        """Return the shells of the jobs, without the copy of itself that a shell is before it becomes `sleep`."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                line = " ".join(process.cmdline())
                if Path(process.cwd()) == self.path and "tangram.commands.two" in line and "snakemake" not in line:
                    found[process.pid] = process
        return [process for process in found.values() if parent_of(process) not in found]

    def values(self, run: str = "one") -> list[str | None]:
        paths = [self.path / run / name for name in OUTPUTS]
        return [path.read_text().strip() if path.exists() else None for path in paths]

    def state(self, kind: str, output: str) -> Path:
        """Return the file of Snakemake's metadata on an output."""
        return self.path / ".snakemake" / kind / base64.urlsafe_b64encode(output.encode()).decode()

    def marked(self, output: str) -> bool:
        return self.state("incomplete", output).exists()

    def mark(self, output: str) -> None:
        """Mark an output as incomplete, as Snakemake does at the start of a job."""
        path = self.state("incomplete", output)
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"external_jobid": null}')

    def take_marks_away(self) -> None:
        """Act like a SLURM job that ends after Snakemake was killed, so that no metadata is recorded."""
        for path in (self.path / ".snakemake" / "incomplete").rglob("*"):
            if path.is_file():
                path.unlink()


def parent_of(process: psutil.Process) -> int | None:
    with contextlib.suppress(psutil.Error):
        return process.ppid()
    return None


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path.resolve())
    yield folder
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.cwd()) == folder.path and process.pid != os.getpid():
                process.kill()


def kill(main: subprocess.Popen[bytes]) -> None:
    main.send_signal(signal.SIGKILL)
    main.wait()


def assert_recovers(folder: Folder, value: str = "A") -> str:
    """Recover, run Snakemake again, and return the output of the recovery."""
    recovered = recover(folder.path)
    assert recovered.returncode == 0, recovered.stderr
    assert not folder.jobs()
    folder.go("a", "b")
    again = folder.snakemake(value=value)
    assert again.returncode == 0, again.stdout + again.stderr
    assert folder.values() == [value] * 4
    once_more = folder.snakemake(value=value)
    assert "Nothing to be done" in once_more.stdout + once_more.stderr
    return recovered.stdout


@pytest.mark.parametrize(
    ("finished", "marks", "earlier"),
    [
        ((), "kept", None),
        (("a",), "kept", None),
        (("a",), "gone", "B"),
        (("a", "b"), "kept", None),
        (("a", "b"), "kept", "A"),
        (("a", "b"), "gone", None),
        (("a", "b"), "gone", "A"),
    ],
)
def test_the_same_command_goes_on_after_a_kill(
    folder: Folder, finished: tuple[str, ...], marks: str, earlier: str | None
) -> None:
    """The outputs are A's, regardless of the orphan's writes and of metadata of an earlier run."""
    if earlier:
        folder.go("a", "b")
        assert folder.snakemake(value=earlier).returncode == 0
        folder.stop()
        (folder.path / "one" / "a.txt").unlink()  # so that a job must run
    main = folder.start()
    wait_for(lambda: folder.values()[2:] == ["A", "A"], 60)
    kill(main)
    folder.go(*finished)
    if finished == ("a", "b"):
        wait_for(lambda: not folder.jobs(), 60)
    elif finished:
        wait_for(lambda: folder.values()[0] == "A", 60)
    if marks == "gone":
        folder.take_marks_away()
    assert_recovers(folder)


@pytest.mark.parametrize("where", ["here", "on SLURM"])
def test_an_orphans_output_is_never_taken_for_other_settings(folder: Folder, where: str) -> None:
    folder.go("a", "b")
    assert folder.snakemake(value="A").returncode == 0
    folder.stop()
    kill(folder.start(value="B"))
    if where == "on SLURM":  # a Snakemake process runs each job, with the arguments of the SLURM executor
        for job in folder.jobs():
            job.kill()
        folder.go("a", "b")
        around = ["--mode", "remote", "--target-jobs", "two:", "--allowed-rules", "two", "--nolock", "--force"]
        done = folder.snakemake(*around, "--ignore-incomplete", value="B")
        assert done.returncode == 0, done.stderr
    folder.go("a", "b")
    wait_for(lambda: not folder.jobs(), 60)
    assert folder.values()[:2] == ["B", "B"]
    assert folder.marked("one/a.txt") == (where == "here")
    assert_recovers(folder, value="A")


@pytest.mark.parametrize("recorded", [0, 1, 2])
def test_a_kill_amid_the_recording_loses_only_the_unrecorded(folder: Folder, recorded: int) -> None:
    """Snakemake records a job's outputs one by one, then removes the marks one by one."""
    folder.go("a", "b")
    assert folder.snakemake().returncode == 0
    names = ["one/a.txt", "one/b.txt"]
    for name in names:
        folder.mark(name)
    for name in names[recorded:]:
        record = folder.state("metadata", name)
        record.write_text(record.read_text()[:40])
    (folder.path / ".snakemake" / "locks").mkdir(exist_ok=True)
    (folder.path / ".snakemake" / "locks" / "0.output.lock").write_text("\n".join(names) + "\n")
    assert unrecorded_outputs(folder.path) == names[recorded:]
    printed = assert_recovers(folder)
    assert f"{2 - recorded} unrecorded files removed" in printed


def test_recovery_after_no_kill_and_a_second_one_change_nothing(folder: Folder) -> None:
    folder.go("a", "b")
    assert folder.snakemake().returncode == 0
    kept = {path: path.stat().st_mtime_ns for path in (folder.path / "one").rglob("*")}
    for _ in range(2):
        assert "0 unrecorded files removed" in recover(folder.path).stdout
    assert kept == {path: path.stat().st_mtime_ns for path in (folder.path / "one").rglob("*")}
    assert "Nothing to be done" in folder.snakemake().stderr
    folder.stop()
    (folder.path / "one" / "a.txt").unlink()
    kill(folder.start())
    assert recover(folder.path).returncode == 0
    assert "0 local and 0 SLURM jobs ended, 0 unrecorded files removed" in assert_recovers(folder)


def test_where_no_snakemake_ran_nothing_is_made(tmp_path: Path) -> None:
    done = recover(tmp_path)
    assert done.returncode == 0
    assert "no Snakemake ran here" in done.stdout
    assert not list(tmp_path.iterdir())


def test_runs_that_share_a_folder_are_not_disturbed(folder: Folder) -> None:
    """Nothing is ended or removed while a Snakemake runs; its end also removes the lock of the killed one."""
    kill(folder.start("one"))
    other = folder.start("other")
    refused = recover(folder.path)
    assert refused.returncode == 1
    assert "Snakemake is at work" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert len(folder.jobs()) == 2
    folder.go("a", "b")
    assert other.wait(timeout=60) == 0, (folder.path / "printed").read_text()
    wait_for(lambda: not folder.jobs(), 60)
    assert not list((folder.path / ".snakemake").glob("locks/*"))
    assert_recovers(folder)
    assert folder.values("other") == ["A"] * 4
    assert "Nothing to be done" in folder.snakemake(run="other").stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_snakemake_is_recovered_likewise(folder: Folder, number: signal.Signals) -> None:
    main = folder.start()
    folder.go("a")
    wait_for(lambda: folder.values()[0] == "A", 60)
    os.killpg(main.pid, number)  # as a terminal does
    main.wait(timeout=60)
    assert_recovers(folder)


def test_without_squeue_the_jobs_of_slurm_are_not_forgotten(folder: Folder) -> None:
    (folder.path / ".snakemake" / "slurm_logs").mkdir(parents=True)
    done = recover(folder.path, {**os.environ, "PATH": "/nowhere"})
    assert done.returncode == 1
    assert done.stderr.startswith("error: jobs were submitted to SLURM")
    assert done.stderr.count("\n") == 1
