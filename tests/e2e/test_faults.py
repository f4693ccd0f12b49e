"""Faults in real processes (kills, full disks, flipped bits): recovered outputs equal those of an undisturbed run."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import (
    CHILD_FILES,
    CURVES,
    PIECE,
    PIECE_FILES,
    Run,
    content,
    jobs_in,
    recover,
    resumed,
    snakemake,
    start,
    wait_for,
)

pytestmark = pytest.mark.slow


def test_after_a_kill_and_recovery_no_layer_is_trained_twice(
    copy_of_run: Callable[[], Path], slow_config: dict, undisturbed: Path
) -> None:
    folder = copy_of_run()
    store = folder / "results/tiny/checkpoints/attention/gqa-1/00-02"
    main = start(folder, slow_config, "--cores", "2", PIECE)
    wait_for(lambda: (store / "0.safetensors").exists())
    (job,) = jobs_in(folder, "distill_blocks")
    job.suspend()  # so that it does not finish before the kill

    second = snakemake(folder, slow_config, "--cores", "2", PIECE)
    assert second.returncode == 1, "two at once in one folder"
    assert "cannot be locked" in second.stderr
    assert "--unlock" in second.stderr, "it says how to go on"
    assert "Snakemake is at work" in recover(folder).stderr

    main.send_signal(signal.SIGKILL)
    main.wait()
    assert jobs_in(folder, "distill_blocks"), "the job outlives its Snakemake"
    job.resume()
    recovered = recover(folder)
    assert recovered.returncode == 0, recovered.stderr
    assert not jobs_in(folder, "distill_blocks"), "so that no two copies of it write the same output"

    again = snakemake(folder, slow_config, "--cores", "2", PIECE)
    assert again.returncode == 0, again.stderr
    assert "layer 0 was finished before a kill" in again.stderr
    assert "capture_activations: " not in again.stderr
    for path in PIECE_FILES:
        assert content(folder / path) == content(undisturbed / path), path
    assert not store.exists()


JOBS = pytest.mark.parametrize(
    ("command", "target", "files", "begun"),
    [
        ("distill_blocks", PIECE, PIECE_FILES, "attention/gqa-1/00-02/0-training/latest"),
        ("finetune_child", CURVES, CHILD_FILES, "small/0/latest"),
    ],
    ids=["distillation", "finetuning"],
)


@pytest.mark.parametrize("marks", ["kept", "gone"])
@JOBS
def test_a_job_that_outlives_its_snakemake_is_made_again(
    command: str,
    target: str,
    files: list[str],
    begun: str,
    marks: str,
    copy_of_run: Callable[[], Path],
    slow_config: dict,
    undisturbed: Path,
) -> None:
    """No Snakemake recorded the output's provenance. A job on SLURM even removes the mark of incomplete output."""
    folder = copy_of_run()
    if command == "finetune_child":  # its pieces also need the slow config
        shutil.rmtree(folder)
        shutil.copytree(undisturbed, folder, symlinks=True)
        (folder / target).unlink()
    main = start(folder, slow_config, "--cores", "2", target)
    wait_for((folder / "results/tiny/checkpoints" / begun).exists)
    main.send_signal(signal.SIGKILL)
    main.wait()
    wait_for(lambda: not jobs_in(folder, command))
    for path in files:
        assert content(folder / path) == content(undisturbed / path), path
    if marks == "gone":
        shutil.rmtree(folder / ".snakemake" / "incomplete")

    recovered = recover(folder)
    assert recovered.returncode == 0, recovered.stderr
    assert all(f"removed {path}" in recovered.stdout for path in files)
    assert not any((folder / path).exists() for path in files)
    again = snakemake(folder, slow_config, "--cores", "2", target)
    assert again.returncode == 0, again.stderr
    for path in files:
        assert content(folder / path) == content(undisturbed / path), path
    once_more = snakemake(folder, slow_config, "--cores", "2", target)
    assert "Nothing to be done" in once_more.stdout + once_more.stderr


@JOBS
def test_a_killed_job_goes_on_from_its_checkpoint(
    command: str,
    target: str,
    files: list[str],
    begun: str,
    copy_of_run: Callable[[], Path],
    slow_config: dict,
    undisturbed: Path,
) -> None:
    folder = copy_of_run()
    if command == "finetune_child":  # its pieces also need the slow config
        shutil.rmtree(folder)
        shutil.copytree(undisturbed, folder, symlinks=True)
        (folder / target).unlink()
    main = start(folder, slow_config, "--cores", "2", "--retries", "1", target)
    wait_for((folder / "results/tiny/checkpoints" / begun).exists)
    (job,) = jobs_in(folder, command)
    job.kill()
    assert main.wait(timeout=300) == 0, (folder / "printed").read_text()
    assert resumed((folder / "printed").read_text())
    for path in files:
        assert content(folder / path) == content(undisturbed / path), path


def test_a_full_disk_is_one_error_and_space_lets_the_run_go_on(
    copy_of_run: Callable[[], Path], slow_config: dict, undisturbed: Path
) -> None:
    folder = copy_of_run()
    small = folder / "results/tiny/library/attention/gqa-1"
    others = {path: path.read_bytes() for path in (folder / "results/tiny/library/ffn").rglob("*.safetensors")}
    old = {path.name: path.read_bytes() for path in small.iterdir()}
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        done = snakemake(folder, slow_config, "--cores", "2", PIECE)
        assert done.returncode == 1
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "cannot write" in errors[0]
        assert "free space" in errors[0]
        assert not list(small.rglob("*.safetensors")), "no half file"
        assert {path: path.read_bytes() for path in others} == others
        subprocess.run(["mount", "-o", "remount,size=16m", str(small)], check=True)
        again = snakemake(folder, slow_config, "--cores", "2", PIECE)
        assert again.returncode == 0, again.stderr
        assert "layer 2 was finished before a kill" in again.stderr, "its work was kept, only the writing is new"
        for path in PIECE_FILES:
            assert content(folder / path) == content(undisturbed / path), path
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
    assert {path.name: path.read_bytes() for path in small.iterdir()} == old


@pytest.mark.parametrize(
    ("damaged", "reader"),
    [
        ("library/ffn/linear/00-02.safetensors", "scores/ffn/linear/00-02.parquet"),
        ("scores/ffn/linear/00-02.parquet", "scores.parquet"),
        ("parent/model.safetensors", "corpus/score.parquet"),
    ],
)
def test_altered_files_are_named_with_a_remedy_and_never_used(
    damaged: str, reader: str, copy_of_run: Callable[[], Path], run: Run
) -> None:
    folder = copy_of_run()
    path = folder / "results/tiny" / damaged
    times, altered = path.stat(), bytearray(path.read_bytes())
    for position in range(len(altered) // 3, len(altered) // 3 + 200, 7):
        altered[position] ^= 1
    path.write_bytes(altered)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # a failing disk does not change it either
    wanted = f"results/tiny/{reader}"
    (folder / wanted).unlink()
    done = snakemake(folder, run.config, "--cores", "2", wanted)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert damaged in errors[0]
    assert "delete it and run again" in errors[0]
    path.unlink()
    again = snakemake(folder, run.config, "--cores", "2", wanted)
    assert again.returncode == 0, again.stderr
    assert content(folder / wanted) == content(run.folder / wanted)
