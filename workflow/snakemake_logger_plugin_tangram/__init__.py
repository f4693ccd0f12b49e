"""The display of a run: `snakemake --logger tangram`, which `make` uses.

It shows a line for every finished stage and every error, and in a terminal a progress bar. The output of jobs goes to
their log files and to Snakemake's log, which the last line names. A dry run keeps Snakemake's own display.
"""

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_tangram.progress import Job, Progress, Stage
from tangram.tools.plan import duration, expected_seconds

NEWS = ("Nothing to be done", "Trying to restart", "Will exit after", "Terminating processes")
UPDATES = (LogEvent.JOB_INFO, LogEvent.JOB_FINISHED, LogEvent.JOB_ERROR, LogEvent.PROGRESS)
KNOWN = ("Exiting because a job execution failed", "WorkflowError:\nAt least one job did not complete")
FAILED = "RuleException:\nCalledProcessError"  # Snakemake's message with the full command; the job's error follows


class LogHandler(LogHandlerBase):
    """The display: Snakemake calls `emit` in one thread, and another thread redraws the bar every second."""

    writes_to_file = has_filter = has_formatter = needs_rulegraph = False

    def __post_init__(self) -> None:
        from snakemake.logging import ColorizingTextHandler, logger

        self.stream = os.fdopen(os.dup(2), "w", errors="replace")
        self.terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.default = ColorizingTextHandler(self.common_settings.nocolor, self.stream)
        self.buffer: list[Any] | None = []  # Snakemake's records before the first job
        self.progress: Progress | None = None
        self.jobs: set[int] = set()  # running or about to run
        self.configs: list[str] = []
        self.ending = "failed"
        self.changing, self.closed = threading.Lock(), threading.Event()
        self.logger = logger
        self.logger.addFilter(self._redirect)

    @property
    def writes_to_stream(self) -> bool:
        """Whether Snakemake's own display is replaced."""
        return not self.common_settings.dryrun

    def emit(self, record: Any) -> None:
        """Show a record; an exception here must not end the thread, which would lose the errors of jobs."""
        try:
            if not self.common_settings.dryrun:
                with self.changing:
                    self._emit(getattr(record, "event", None), record, self.progress)
        except Exception:
            self.handleError(record)

    def _emit(self, event: LogEvent | None, record: Any, progress: Progress | None) -> None:
        if event == LogEvent.WORKFLOW_STARTED:
            self.buffer, self.configs = None, record.configfiles
        elif event == LogEvent.RUN_INFO:
            self.buffer = None
            stages = {rule: Stage(jobs) for rule, jobs in record.stats.items() if rule != "total"}
            self.progress = Progress(record.created, stages, record.stats["total"])
            self._expect(self.progress)
            self._show(f"{self.progress.total} job{'s' * (self.progress.total != 1)}")
            threading.Thread(target=self._tick, daemon=True).start()
        elif self.buffer is not None and record.levelno == logging.INFO:
            self.buffer.append(record)
        elif event in UPDATES and progress is not None:
            self._update(event, record, progress)
        elif record.levelno != logging.INFO and event != LogEvent.GROUP_ERROR:
            if record.msg.startswith(FAILED):
                self.ending = record.msg.rstrip(" .\n").rpartition("' ")[2]
            elif not record.msg.startswith(KNOWN):
                self._show(self.default.decorate(record, self.format(record)))
        elif record.msg.startswith("Complete log") and progress is not None:
            took, log = duration(record.created - progress.start), record.msg.partition(": ")[2]
            self._show(f"{progress.done} job{'s' * (progress.done != 1)} done in {took}; full log: {log}")
        elif record.msg.startswith(NEWS):
            self._show(record.msg)

    def close(self) -> None:
        """Show the buffered records if nothing ran, and restore standard error."""
        if not self.closed.is_set():
            self.closed.set()
            with self.changing:
                for record in self.buffer or []:
                    self._show(self.default.decorate(record, self.format(record)))
                self._show()
            self.logger.removeFilter(self._redirect)
            if self.jobs:
                os.dup2(self.stream.fileno(), 2)
        super().close()

    def _update(self, event: LogEvent, record: Any, progress: Progress) -> None:
        if event == LogEvent.JOB_INFO:
            piece = " ".join([record.rule_name, *map(str, record.wildcards.values())])
            progress.begin(record.jobid, Job(record.rule_name, piece, record.created))
        elif event == LogEvent.PROGRESS:
            progress.total = record.total
        elif event == LogEvent.JOB_ERROR:
            job = progress.end(record.jobid, record.created, done=False)
            self._show(f"error: {_error_of(record.log, record.rule_msg)}")
            piece, logs = job.piece if job else record.rule_name, " ".join(record.log) or "none"
            self._show(f"  {piece} {self.ending}; log: {logs}")
            self.ending = "failed"
        elif (job := progress.end(record.job_id, record.created, done=True)) and job.rule != "all":
            stage = progress.stages[job.rule]
            if stage.done == stage.jobs:
                self._expect(progress)
                jobs = f"{stage.done:>4} job{'s' if stage.done > 1 else ' '}"
                line = f"{job.rule:<{max(map(len, progress.stages))}} {jobs} {duration(stage.seconds):>8}"
                left = f"{progress.done}/{progress.total}, {progress.time_left(record.created)} left"
                self._show(line if self.terminal else f"{line}   ({left})")
        self._show()

    def _expect(self, progress: Progress) -> None:
        """Update the expected seconds of jobs; the plan needs the fetched parent."""
        progress.expected = expected_seconds(self.configs[-1]) if self.configs else {}

    def _redirect(self, record: Any) -> bool:
        """Redirect standard error to the log file while jobs run.

        A filter runs in the threads that start and end jobs, before `emit`.
        """
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_STARTED:
            files = [handler.baseFilename for handler in self.logger.handlers if hasattr(handler, "baseFilename")]
            self.jobs.update(record.jobs)
            with open(files[0] if files else os.devnull, "a") as log:
                os.dup2(log.fileno(), 2)
        elif event in (LogEvent.JOB_FINISHED, LogEvent.JOB_ERROR) and self.jobs:
            self.jobs.discard(record.job_id if event == LogEvent.JOB_FINISHED else record.jobid)
            if not self.jobs:
                os.dup2(self.stream.fileno(), 2)
        return True

    def _show(self, line: str | None = None) -> None:
        """Print a line in place of the bar, and the bar below it; without running jobs, others may print: no bar."""
        text, progress = "" if line is None else f"{line}\n", self.progress
        if self.terminal:
            text = f"\r\x1b[K{text}"
            if progress is not None and progress.running and not self.closed.is_set():
                now, filled = time.time(), 12 * progress.done // progress.total
                running = ", ".join(f"{job.piece} ({duration(now - job.start)})" for job in progress.running.values())
                bar = f"[{'#' * filled}{'.' * (12 - filled)}] {progress.done}/{progress.total}"
                bar = f"{bar}, {progress.time_left(now)} left: {running}"
                text += bar[: (os.get_terminal_size(self.stream.fileno()).columns or 80) - 1]
        self.stream.write(text)
        self.stream.flush()

    def _tick(self) -> None:
        while self.terminal and not self.closed.wait(1):
            with self.changing:
                self._show()


def _error_of(logs: list[str], executor: str | None) -> str:
    """Return a job's error message, else its executor's (a cluster's), else the last line of its log."""
    text = Path(logs[0]).read_text(errors="replace") if logs and Path(logs[0]).exists() else ""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else executor or (lines or ["the job left no message"])[-1]
