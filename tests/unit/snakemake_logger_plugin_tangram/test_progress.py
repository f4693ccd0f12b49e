"""What a person sees of a run, from events as Snakemake 9.27 sends them."""

import io
import logging
import os
import re
import termios
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snakemake_logger_plugin_tangram import LogHandler
from snakemake_logger_plugin_tangram.progress import Job, Progress, Stage

START = 1_000_000.0
LOG = "results/tiny/logs/score_blocks/ffn/no-op/00-02.log"


def record(seconds: float, message: str, event: str | None = None, **fields: Any) -> logging.LogRecord:
    """Return what a queue hands over: a message that is text, whatever it was."""
    level = "ERROR" if event in ("error", "job_error") or message.startswith("Exiting") else "INFO"
    return logging.makeLogRecord(
        {"msg": message, "levelname": level, "levelno": getattr(logging, level), "created": START + seconds}
        | ({"event": event} if event else {})
        | fields
    )


def job(seconds: float, number: int, rule: str, **wildcards: str) -> logging.LogRecord:
    return record(seconds, f"Rule: {rule}", "job_info", jobid=number, rule_name=rule, wildcards=wildcards)


def finished(seconds: float, number: int, done: int, total: int = 4) -> list[logging.LogRecord]:
    end = record(seconds, f"Finished jobid: {number}", "job_finished", job_id=number)
    return [end, record(seconds, "None", "progress", done=done, total=total)]


BEFORE = [
    record(0, "Assuming unrestricted shared filesystem usage."),
    record(0, "Workflow has started!", "workflow_started", configfiles=[]),
    record(0, "Building DAG of jobs..."),
    record(0, "Job stats: …", "run_info", stats={"score_blocks": 2, "collect_scores": 1, "all": 1, "total": 4}),
    record(0, "Select jobs to execute..."),
    record(0, "Execute 2 jobs...", "job_started", jobs=[12, 13]),
    job(0, 12, "score_blocks", kind="ffn", variant="linear", shard="00-02"),
    job(0, 13, "score_blocks", kind="ffn", variant="no-op", shard="00-02"),
    record(0, "Shell command: python …", "shellcmd", shellcmd="python …"),
]
SUCCESS = [
    *BEFORE,
    *finished(10, 12, 1),
    *finished(20, 13, 2),
    job(20, 2, "collect_scores"),
    *finished(21, 2, 3),
    job(21, 0, "all"),
    *finished(21, 0, 4),
    record(22, "Complete log(s): run/.snakemake/log/x.snakemake.log"),
    record(22, "Elapsed time: 0:00:22"),
]
COMMAND = "Command 'set -euo pipefail;  python -m … --kind 'ffn'' returned non-zero exit status 1."
FAILURE = [
    *BEFORE,
    record(12, f'RuleException:\nCalledProcessError in file "scores.smk", line 42:\n{COMMAND}', "error"),
    record(12, "Error in rule", "job_error", jobid=13, rule_name="score_blocks", rule_msg=None, log=[LOG]),
    *finished(13, 12, 1),
    record(13, "Shutting down, this might take some time."),
    record(13, "Exiting because a job execution failed. Look above for error messages"),
    record(13, "Complete log(s): run/.snakemake/log/x.snakemake.log"),
    record(13, "WorkflowError:\nAt least one job did not complete successfully.", "error"),
]


@pytest.fixture
def handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LogHandler]:
    """A display that writes into memory, as it does into a pipe."""
    monkeypatch.chdir(tmp_path)
    made = LogHandler(SimpleNamespace(dryrun=False, nocolor=True), None)  # type: ignore[arg-type]
    made.stream, made.terminal = io.StringIO(), False  # type: ignore[assignment]
    yield made
    made.close()


def printed(handler: LogHandler, records: list[logging.LogRecord]) -> str:
    for one in records:
        handler.emit(one)
    handler.close()
    return handler.stream.getvalue()  # type: ignore[attr-defined]


def test_a_pipe_gets_a_line_per_finished_stage_and_the_logs_name(handler: LogHandler) -> None:
    assert printed(handler, SUCCESS).splitlines() == [
        "4 jobs",
        "score_blocks      2 jobs     30 s   (2/4, \N{EN DASH} left)",
        "collect_scores    1 job       1 s   (3/4, 0 s left)",
        "4 jobs done in 22 s; full log: run/.snakemake/log/x.snakemake.log",
    ]


def test_a_failed_job_is_its_own_error_and_its_log_file(handler: LogHandler) -> None:
    Path(LOG).parent.mkdir(parents=True)
    Path(LOG).write_text("score_blocks: 0%|  | 0/3\rscore_blocks: 33%|▎ | 1/3\nerror: a file is damaged; delete it\n\n")
    assert printed(handler, FAILURE).splitlines() == [
        "4 jobs",
        "error: a file is damaged; delete it",
        f"  score_blocks ffn no-op 00-02 returned non-zero exit status 1; log: {LOG}",
        "1 job done in 13 s; full log: run/.snakemake/log/x.snakemake.log",
    ]


def test_without_an_error_the_clusters_or_the_last_line_is_shown(handler: LogHandler) -> None:
    Path(LOG).parent.mkdir(parents=True)
    fields = {"jobid": 13, "rule_name": "score_blocks", "log": [LOG, "slurm.log"]}
    Path(LOG).write_text('Traceback (most recent call last):\n  File "x.py", line 1\nValueError: no\n')
    for one in [*BEFORE, record(1, "Error", "job_error", rule_msg=None, **fields)]:
        handler.emit(one)
    handler.emit(record(2, "Trying to restart job 13."))
    handler.emit(job(2, 13, "score_blocks", kind="ffn", variant="no-op", shard="00-02"))
    handler.emit(record(3, "Error", "job_error", rule_msg="SLURM status is: 'OUT_OF_MEMORY'", **fields))
    Path(LOG).write_text("error: a file is damaged\n")
    failed = record(4, "Error", "job_error", rule_msg="SLURM status is: 'FAILED'", **fields)
    lines = printed(handler, [failed]).splitlines()
    assert lines[1:] == [
        "error: ValueError: no",
        f"  score_blocks ffn no-op 00-02 failed; log: {LOG} slurm.log",
        "Trying to restart job 13.",
        "error: SLURM status is: 'OUT_OF_MEMORY'",
        f"  score_blocks ffn no-op 00-02 failed; log: {LOG} slurm.log",
        "error: a file is damaged",
        f"  score_blocks failed; log: {LOG} slurm.log",
    ]


@pytest.mark.parametrize("run", [SUCCESS, FAILURE], ids=["success", "failure"])
def test_a_terminal_gets_a_bar_that_fits_and_goes_at_the_end(handler: LogHandler, run: list) -> None:
    ours, screen = os.openpty()
    termios.tcsetwinsize(screen, (24, 60))
    handler.stream, handler.terminal = os.fdopen(screen, "w"), True
    for one in run:
        handler.emit(one)
    handler.close()
    text = ""
    while "full log" not in text or not text.endswith("\x1b[K"):
        text += os.read(ours, 100_000).decode().replace("\r\n", "\n")
    handler.stream.close()
    os.close(ours)
    drawn = text.split("\r\x1b[K")
    bars = [part for part in drawn if part.startswith("[")]
    assert bars[1].startswith("[............] 0/4, \N{EN DASH} left: score_blocks ffn linear")
    assert max(map(len, bars)) == 59
    assert not any("\n" in bar for bar in bars), "a line stands above the bar, never in it"
    assert text.endswith("\n\r\x1b[K"), "nothing is left of the bar"
    assert not re.search("[\x00-\x09\x0b-\x1f]", "".join(drawn))


def test_warnings_and_other_errors_are_shown_unchanged(handler: LogHandler) -> None:
    warning = logging.makeLogRecord({"msg": "a file is missing", "levelname": "WARNING", "levelno": logging.WARNING})
    missing = record(5, "MissingOutputException in rule score_blocks", "error")
    nothing = record(6, "Nothing to be done (all requested files are present and up to date).")
    lines = printed(handler, [*BEFORE[:3], warning, missing, nothing]).splitlines()
    assert lines == ["a file is missing", missing.msg, nothing.msg]


def test_where_nothing_runs_nothing_is_different(handler: LogHandler) -> None:
    assert printed(handler, [BEFORE[0], BEFORE[2]]) == f"{BEFORE[0].msg}\n{BEFORE[2].msg}\n"
    planned = LogHandler(SimpleNamespace(dryrun=True, nocolor=True), None)  # type: ignore[arg-type]
    planned.stream = io.StringIO()  # type: ignore[assignment]
    assert not planned.writes_to_stream, "Snakemake adds its own display"
    assert printed(planned, SUCCESS) == ""


def test_the_time_left_is_that_of_like_jobs_side_by_side() -> None:
    progress = Progress(0, {"distill": Stage(4), "all": Stage(1)}, 5)
    progress.begin(1, Job("distill", "distill a", 0))
    progress.begin(2, Job("distill", "distill b", 0))
    assert progress.time_left(5) == "\N{EN DASH}"
    progress.end(1, 60, done=True)
    progress.begin(3, Job("distill", "distill c", 60))
    assert progress.time_left(60) == "60 s", "a minute's job that runs, one that waits, and one that is due"
    progress.end(2, 70, done=False)
    assert progress.time_left(80) == "3 min", "what failed runs again"


def test_expectations_are_corrected_and_bound_the_time_left() -> None:
    stages = {"fetch": Stage(1), "distill": Stage(2), "report": Stage(1)}
    progress = Progress(0, stages, 4, expected={"fetch": 10, "distill": 100, "report": 5})
    assert progress.time_left(0) == "4 min"
    progress.begin(1, Job("fetch", "fetch", 0))
    progress.end(1, 20, done=True)
    assert progress.time_left(20) == "7 min", "everything takes twice as long"
    del progress.expected["report"]
    assert progress.time_left(20) == "> 7 min"
    progress.expected["report"], progress.total = 5, 6
    assert progress.time_left(20) == "> 7 min", "a checkpoint added jobs"
