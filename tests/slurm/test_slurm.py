"""The pipeline with `--profile slurm` on a real SLURM of several nodes: outputs equal those of the local run."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import cluster as slurm
import psutil
import pytest
from safetensors.torch import load_file
from tiny_run import CURVES, PIECE, PIECE_FILES, Run, content, jobs_in, recover, resumed, snakemake, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(slurm.missing()), reason=f"no SLURM: {slurm.missing()}")]

# The profile, with the threads of the local run (for equal results) and frequent polling. `fetch_parent` has no entry:
# a rule whose threads follow the number of cores must not need one.
TIMED = (
    *("measure_costs", "calibrate_costs", "measure_speed"),
    *("evaluate_parent_tasks", "evaluate_tasks", "evaluate_parent_perplexity", "evaluate_perplexity"),
    *("evaluate_parent_long_context", "evaluate_long_context"),
)
HALVED = ("finetune_child", "evaluate_parent", "evaluate_model")
PROFILE = [
    *("--profile", "slurm", "--set-threads", *(f"{rule}=2" for rule in TIMED), *(f"{rule}=1" for rule in HALVED)),
    *("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2", "--latency-wait", "5"),
    *("--slurm-keep-successful-logs", "--slurm-no-account"),
]
DETERMINISTIC = [
    "parent/*", "corpus/*", "activations/*", "library/**/*", "scores/**/*", "scores.parquet",
    "targets/*/solutions.parquet", "targets/*/*/architecture.json",
    "targets/*/*/child/*", "targets/*/*/finetuned/*", "targets/*/*/curves.parquet", "targets/*/*/tasks.parquet",
    "parent_tasks.parquet",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    """Three nodes; every test restores their state."""
    try:
        cluster = slurm.up(tmp_path_factory.mktemp("slurm") / "cluster")
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"SLURM is installed, but does not come up here: {error}")
    yield cluster
    cluster.down()


def on_slurm(cluster: slurm.Cluster, folder: Path, config: dict, *arguments: str) -> str:
    """Run with the profile and return the output."""
    done = snakemake(folder, config, *PROFILE, *arguments, environment=cluster.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def running(cluster: slurm.Cluster, folder: Path) -> list[str]:
    """Return the ids of running SLURM jobs that were submitted from a folder."""
    lines = cluster.call("squeue", "-h", "-r", "-t", "running", "-o", "%i|%Z").splitlines()
    return [number for number, where in (line.split("|") for line in lines) if Path(where) == folder]


def begun(folder: Path) -> Path:
    """Return the file that exists once the piece's training has written a state."""
    return folder / "results/tiny/checkpoints/attention/gqa-1/00-02/0-training/latest"


def the_job(cluster: slurm.Cluster, folder: Path) -> str:
    """Wait until the job that trains the piece has written a state, and return its id."""
    wait_for(begun(folder).exists, 600)
    (number,) = running(cluster, folder)
    return number


def assert_undisturbed(folder: Path, undisturbed: Path) -> None:
    for path in PIECE_FILES:
        assert content(folder / path) == content(undisturbed / path), path


def test_the_whole_pipeline_gives_the_bytes_of_a_local_run(cluster: slurm.Cluster, run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder / ".downloads", tmp_path / ".downloads")
    printed = on_slurm(cluster, tmp_path, run.config)
    ours, theirs = tmp_path / "results" / "tiny", run.results
    for pattern in DETERMINISTIC:
        paths = [path.relative_to(theirs) for path in theirs.glob(pattern) if path.is_file()]
        assert paths, pattern
        for path in paths:
            assert content(ours / path) == content(theirs / path), path
    assert (ours / "report.html").exists()
    nodes = {record["NodeList"] for record in cluster.finished()}
    assert nodes == {"n1", "n2", "n3"}
    # Jobs that become ready together are submitted as one array; a job that becomes ready later is submitted alone.
    arrays = list((tmp_path / ".snakemake" / "slurm_logs").glob("rule_distill_blocks/**/*_*.log"))
    assert len(arrays) >= 2, printed
    again = snakemake(tmp_path, run.config, *PROFILE, environment=cluster.environment)
    assert "Nothing to be done" in again.stdout + again.stderr


def test_after_a_kill_and_recovery_no_two_copies_run(
    cluster: slurm.Cluster, copy_of_run: Callable[[], Path], slow_config: dict, undisturbed: Path
) -> None:
    folder = copy_of_run()
    main = start(folder, slow_config, *PROFILE, PIECE, environment=cluster.environment)
    job = the_job(cluster, folder)
    (process,) = jobs_in(folder, "distill_blocks")
    process.suspend()  # so that it does not finish before the kill
    main.send_signal(signal.SIGKILL)
    main.wait()
    assert running(cluster, folder) == [job], "the job outlives its Snakemake"
    refused = snakemake(folder, slow_config, *PROFILE, PIECE, environment=cluster.environment)
    assert "cannot be locked" in refused.stderr
    process.resume()
    recovered = recover(folder, cluster.environment)
    assert recovered.returncode == 0, recovered.stderr
    assert "1 SLURM jobs ended" in recovered.stdout
    assert running(cluster, folder) == []
    assert not jobs_in(folder, "distill_blocks")
    on_slurm(cluster, folder, slow_config, PIECE)
    log = (folder / "results/tiny/logs/distill_blocks/attention/gqa-1/00-02.log").read_text()
    assert resumed(log)
    assert_undisturbed(folder, undisturbed)


def cancel(cluster: slurm.Cluster, folder: Path, job: str) -> None:
    cluster.call("scancel", job)


def end_its_time(cluster: slurm.Cluster, folder: Path, job: str) -> None:
    # SLURM checks time limits once a minute, so the job must wait that long.
    (process,) = jobs_in(folder, "distill_blocks")
    process.suspend()
    cluster.call("scontrol", "update", f"jobid={job}", "endtime=now")


@pytest.mark.parametrize(
    ("disturb", "arguments", "state"),
    [
        (cancel, (), "CANCELLED"),
        (end_its_time, (), "TIMEOUT"),
        # 250 MB are too few for torch; the retry gets 4 GB.
        (None, ("--set-resources", "distill_blocks:mem_mb=attempt ** 4 * 250"), "FAILED"),
    ],
    ids=["cancelled", "over its time", "over its memory"],
)
def test_a_failed_job_is_retried_from_its_checkpoint(
    disturb: Callable | None,
    arguments: tuple[str, ...],
    state: str,
    cluster: slurm.Cluster,
    copy_of_run: Callable[[], Path],
    slow_config: dict,
    undisturbed: Path,
) -> None:
    folder = copy_of_run()
    before = len(cluster.finished())
    main = start(folder, slow_config, *PROFILE, PIECE, *arguments, environment=cluster.environment)
    if disturb:
        disturb(cluster, folder, the_job(cluster, folder))
    assert main.wait(timeout=1200) == 0, (folder / "printed").read_text()
    states = [record["JobState"] for record in cluster.finished()[before:]]
    assert states == [state, "COMPLETED"], "one retry, and nothing else"
    log = (folder / "results/tiny/logs/distill_blocks/attention/gqa-1/00-02.log").read_text()
    assert resumed(log) == (disturb is not None)
    assert_undisturbed(folder, undisturbed)


def test_a_dead_node_costs_a_retry_and_survivors_harm_nothing(
    cluster: slurm.Cluster, copy_of_run: Callable[[], Path], slow_config: dict, undisturbed: Path
) -> None:
    folder = copy_of_run()
    main = start(folder, slow_config, *PROFILE, PIECE, environment=cluster.environment)
    job = the_job(cluster, folder)
    node = cluster.call("squeue", "-h", "-r", "-j", job, "-o", "%N").strip()
    (survivor,) = jobs_in(folder, "distill_blocks")
    os.kill(cluster.pid(f"slurmd-{node}"), signal.SIGKILL)
    try:
        assert main.wait(timeout=1200) == 0, (folder / "printed").read_text()
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.wait(timeout=600)  # it writes the same output as the retry, before or after it
        assert_undisturbed(folder, undisturbed)
        assert not list((folder / "results").rglob("*.partial"))
    finally:
        (cluster.folder / "run" / f"slurmd-{node}.pid").unlink(missing_ok=True)
        cluster.start_node(node)
        wait_for(lambda: cluster.nodes()[node] == "idle", 60)


def test_a_restart_of_slurmctld_during_a_poll_is_outlived(
    cluster: slurm.Cluster, copy_of_run: Callable[[], Path], slow_config: dict, undisturbed: Path
) -> None:
    folder = copy_of_run()
    arguments = (*PROFILE, "--verbose", PIECE)
    main = start(folder, slow_config, *arguments, environment=cluster.environment)
    the_job(cluster, folder)
    controller = cluster.pid("slurmctld")
    os.kill(controller, signal.SIGTERM)
    wait_for(lambda: not psutil.pid_exists(controller), 30)
    wait_for(lambda: "could not check status" in (folder / "printed").read_text(), 120)
    cluster.start_controller()
    assert main.wait(timeout=1200) == 0, (folder / "printed").read_text()
    assert_undisturbed(folder, undisturbed)


def test_two_nodes_finetune_like_two_processes_of_one(
    cluster: slurm.Cluster, undisturbed: Path, slow_config: dict, tmp_path_factory: pytest.TempPathFactory
) -> None:
    weights = []
    for name, layout in (("one", {"processes_per_node": 2}), ("two", {"nodes": 2})):
        folder = tmp_path_factory.mktemp(name) / "run"
        shutil.copytree(undisturbed, folder, symlinks=True)
        config = slow_config | {"finetune": slow_config["finetune"] | {"parallel": layout}}
        if name == "one":
            done = snakemake(folder, config, "--cores", "2", CURVES)
            assert done.returncode == 0, done.stderr
        else:
            on_slurm(cluster, folder, config, CURVES)
        weights.append(load_file(folder / "results/tiny/targets/small/0/finetuned/model.safetensors"))
    record = cluster.finished()[-1]
    assert record["NodeCnt"] == "2", json.dumps(record)
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_the_cluster_needs_no_more_than_its_script(cluster: slurm.Cluster, tmp_path: Path) -> None:
    script = Path(slurm.__file__)
    done = subprocess.run(["python3", script, "up", tmp_path / "own"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    exports = dict(re.findall(r"(\w+)=(\S+)", done.stdout))
    assert Path(exports["SLURM_CONF"]).exists()
    pids = [int(path.read_text()) for path in (tmp_path / "own" / "run").glob("*.pid")]
    assert len(pids) == 5
    subprocess.run(["python3", script, "down", tmp_path / "own"], check=True)
    assert not any(psutil.pid_exists(pid) for pid in pids)
