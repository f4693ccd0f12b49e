"""How far a run is, from what Snakemake tells of it: its stages, their jobs, and the time left."""

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
    """One rule's jobs: how many there are and are done, and the seconds that the finished ones took, added up."""

    jobs: int = 0
    done: int = 0
    seconds: float = 0


@dataclass
class Progress:
    """A run: its start, its stages by rule, its jobs, the seconds expected of a rule's job, and running jobs by number.

    A checkpoint may add jobs or spare some, of whichever stages: ``total`` counts that, and ``stages`` do not.
    """

    start: float
    stages: dict[str, Stage]
    total: int
    expected: dict[str, float] = field(default_factory=dict)
    running: dict[int, Job] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """How many jobs are finished."""
        return sum(stage.done for stage in self.stages.values())

    def begin(self, number: int, job: Job) -> None:
        """Note that a job runs."""
        self.running[number] = job
        stage = self.stages.setdefault(job.rule, Stage())
        stage.jobs = max(stage.jobs, stage.done + len(self._running(job.rule)))

    def end(self, number: int, now: float, done: bool) -> Job | None:
        """Note that a job is done, or failed and may run again; return it."""
        job = self.running.pop(number, None)
        if job is not None and done:
            self.stages[job.rule].done += 1
            self.stages[job.rule].seconds += now - job.start
        return job

    def time_left(self, now: float) -> str:
        """Return how long the run goes on: at the least, if of some jobs nothing is known; a dash if of all.

        A job takes as long as others of its rule did. Of a rule without any, what is expected counts, times how far off
        that was until now. Jobs run side by side as they did until now.
        """
        found = [(self.stages[rule], seconds) for rule, seconds in self.expected.items() if rule in self.stages]
        foreseen = sum(stage.done * seconds for stage, seconds in found)
        pace = sum(stage.seconds for stage, _ in found) / foreseen if foreseen else 1.0
        rest, known = [0.0], self.total == sum(stage.jobs for stage in self.stages.values())
        for rule, stage in self.stages.items():
            if stage.done < stage.jobs and rule != "all":
                known &= stage.done > 0 or rule in self.expected
                each = stage.seconds / stage.done if stage.done else pace * self.expected.get(rule, 0)
                running = self._running(rule)
                rest += [max(0.0, each - (now - job.start)) for job in running]
                rest += [each] * (stage.jobs - stage.done - len(running))
        spent = sum(stage.seconds for stage in self.stages.values())
        spent += sum(now - job.start for job in self.running.values())
        seconds = max(*rest, sum(rest) / max(1.0, spent / max(1e-3, now - self.start)))
        return "\N{EN DASH}" if not known and not seconds else f"{'' if known else '> '}{duration(seconds)}"

    def _running(self, rule: str) -> list[Job]:
        return [job for job in self.running.values() if job.rule == rule]
