"""Nothing is lost: kills, full disks and flipped bits, on real processes, end in the outputs of an undisturbed run."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import Run, content, jobs_in, snakemake, start, wait_for

pytestmark = pytest.mark.slow

PIECE = "results/tiny/library/attention/gqa-1/00-02.safetensors"
PIECE_FILES = [PIECE, PIECE.replace(".safetensors", ".parquet"), PIECE.replace(".safetensors", ".curves.parquet")]
CURVES = "results/tiny/targets/small/0/curves.parquet"
CHILD_FILES = [CURVES, "results/tiny/targets/small/0/finetuned/model.safetensors"]


@pytest.fixture(scope="module")
def slow_config(run: Run) -> dict:
    """The finished run's config with trainings that last some seconds, so that there is something to kill."""
    library = run.config["library"] | {"bld": {"epochs": 120, "checkpoint_seconds": 1}}
    return run.config | {"library": library, "finetune": {"epochs": 60, "checkpoint_seconds": 1}}


@pytest.fixture(scope="module")
def copy(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Return a function that copies the finished run, so that each fault has a folder of its own."""

    def copy() -> Path:
        folder = tmp_path_factory.mktemp("fault") / "run"
        shutil.copytree(run.folder, folder, symlinks=True)
        return folder

    return copy


@pytest.fixture(scope="module")
def undisturbed(copy: Callable[[], Path], slow_config: dict) -> Path:
    """A run with the slow config that nothing happened to."""
    folder = copy()
    for target in (PIECE, CURVES):
        done = snakemake(folder, slow_config, "--cores", "2", target)
        assert done.returncode == 0, done.stderr
    return folder


def recover(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tangram.recover"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_a_killed_snakemake_is_recovered_by_one_command_and_no_layer_is_trained_twice(
    copy: Callable[[], Path], slow_config: dict, undisturbed: Path
) -> None:
    folder = copy()
    store = folder / "results/tiny/checkpoints/attention/gqa-1/00-02"
    main = start(folder, slow_config, "--cores", "2", PIECE)
    wait_for(lambda: (store / "0.safetensors").exists())

    second = snakemake(folder, slow_config, "--cores", "2", PIECE)
    assert second.returncode == 1, "two at once in one folder"
    assert "cannot be locked" in second.stderr
    assert "--unlock" in second.stderr, "it says how to go on"
    assert "Snakemake is at work" in recover(folder).stderr

    main.send_signal(signal.SIGKILL)
    main.wait()
    assert jobs_in(folder, "distill_blocks"), "the job outlives its Snakemake"
    recovered = recover(folder)
    assert recovered.returncode == 0, recovered.stderr
    assert not jobs_in(folder, "distill_blocks"), "so that no two copies of it write the same output"

    again = snakemake(folder, slow_config, "--cores", "2", PIECE)
    assert again.returncode == 0, again.stderr
    assert "layer 0 was finished before a kill" in again.stderr
    assert "rule capture_activations" not in again.stderr
    for path in PIECE_FILES:
        assert content(folder / path) == content(undisturbed / path), path
    assert not store.exists()


@pytest.mark.parametrize(
    ("command", "target", "files", "begun", "resumed"),
    [
        ("distill_blocks", PIECE, PIECE_FILES, "attention/gqa-1/00-02/0-training/latest", "goes on from step"),
        ("finetune_child", CURVES, CHILD_FILES, "small/0/latest", "goes on from step"),
    ],
    ids=["distillation", "finetuning"],
)
def test_a_killed_job_goes_on_from_its_checkpoint(
    command: str,
    target: str,
    files: list[str],
    begun: str,
    resumed: str,
    copy: Callable[[], Path],
    slow_config: dict,
    undisturbed: Path,
) -> None:
    folder = copy()
    if command == "finetune_child":  # its pieces are those of the slow config, too
        shutil.rmtree(folder)
        shutil.copytree(undisturbed, folder, symlinks=True)
        (folder / target).unlink()
    main = start(folder, slow_config, "--cores", "2", "--retries", "1", target)
    wait_for((folder / "results/tiny/checkpoints" / begun).exists)
    (job,) = jobs_in(folder, command)
    job.kill()
    assert main.wait(timeout=300) == 0, (folder / "printed").read_text()
    assert resumed in (folder / "printed").read_text()
    for path in files:
        assert content(folder / path) == content(undisturbed / path), path


def test_a_full_disk_is_one_clear_error_and_the_same_command_goes_on_after_space_is_made(
    copy: Callable[[], Path], slow_config: dict, undisturbed: Path
) -> None:
    folder = copy()
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


@pytest.mark.parametrize("damaged", ["library/attention/gqa-1/00-02.safetensors", "scores.parquet"])
def test_a_flipped_bit_is_named_with_its_remedy_and_never_used(
    damaged: str, copy: Callable[[], Path], run: Run
) -> None:
    folder = copy()
    path = folder / "results/tiny" / damaged
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a failing disk does it: nothing shows
    # Another target reads every table and, as all FFNs may stay, the attention's pieces.
    targets = {"other": {"constraints": [{"quantity": "kv_bytes_per_token", "max": 0.67}], "solutions": 1}}
    config = run.config | {"targets": run.config["targets"] | targets}
    wanted = "results/tiny/targets/other/0/architecture.json"
    done = snakemake(folder, config, "--cores", "2", wanted)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert damaged in errors[0]
    assert "delete it and run again" in errors[0]
    path.unlink()
    again = snakemake(folder, config, "--cores", "2", wanted)
    assert again.returncode == 0, again.stderr
