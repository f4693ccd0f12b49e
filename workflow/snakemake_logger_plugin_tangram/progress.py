"""Progress of a run from Snakemake's events: its stages, their jobs, and the time left."""

from dataclasses import dataclass, field

from tangram.tools.plan import duration


@dataclass(frozen=True)
class Job:
    """A running job: its rule, the rule with its wildcards (`distill_blocks ffn width-0.5 00-29`), and its start."""

    rule: str
    piece: str
    start: float


@dataclass
class Stage:
    """One rule's jobs: their number, the number of finished ones, and the sum of the finished ones' seconds."""

    jobs: int = 0
    done: int = 0
    seconds: float = 0


@dataclass
class Progress:
    """A run: start, stages by rule, number of jobs, expected seconds per job by rule, and running jobs by ID.

    A checkpoint may add or remove jobs of any stage: ``total`` counts them, and ``stages`` do not.
    """

    start: float
    stages: dict[str, Stage]
    total: int
    expected: dict[str, float] = field(default_factory=dict)
    running: dict[int, Job] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Number of finished jobs."""
        return sum(stage.done for stage in self.stages.values())

    def begin(self, number: int, job: Job) -> None:
        """Register a running job."""
        self.running[number] = job
        stage = self.stages.setdefault(job.rule, Stage())
        stage.jobs = max(stage.jobs, stage.done + len(self._running(job.rule)))

    def end(self, number: int, now: float, done: bool) -> Job | None:
        """Register that a job is done, or failed and may run again; return the job."""
        job = self.running.pop(number, None)
        if job is not None and done:
            self.stages[job.rule].done += 1
            self.stages[job.rule].seconds += now - job.start
        return job

    def time_left(self, now: float) -> str:
        """Return the estimated time left: a lower bound if some jobs have no estimate, a dash if all lack one.

        A job's estimate is the mean of its rule's finished jobs, else the expected seconds times the ratio of measured
        to expected seconds so far. The number of parallel jobs stays the mean so far.
        """
        pairs = [(self.stages[rule], seconds) for rule, seconds in self.expected.items() if rule in self.stages]
        expected = sum(stage.done * seconds for stage, seconds in pairs)
        pace = sum(stage.seconds for stage, _ in pairs) / expected if expected else 1.0
        rest, complete = [0.0], self.total == sum(stage.jobs for stage in self.stages.values())
        for rule, stage in self.stages.items():
            if stage.done < stage.jobs and rule != "all":
                complete &= stage.done > 0 or rule in self.expected
                each = stage.seconds / stage.done if stage.done else pace * self.expected.get(rule, 0)
                running = self._running(rule)
                rest += [max(0.0, each - (now - job.start)) for job in running]
                rest += [each] * (stage.jobs - stage.done - len(running))
        spent = sum(stage.seconds for stage in self.stages.values())
        spent += sum(now - job.start for job in self.running.values())
        seconds = max(*rest, sum(rest) / max(1.0, spent / max(1e-3, now - self.start)))
        return "\N{EN DASH}" if not complete and not seconds else f"{'' if complete else '> '}{duration(seconds)}"

    def _running(self, rule: str) -> list[Job]:
        return [job for job in self.running.values() if job.rule == rule]
