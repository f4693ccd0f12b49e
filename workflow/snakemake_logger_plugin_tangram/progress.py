"""How far a run is, from what Snakemake tells of it: its stages, their jobs, and the time left."""

from dataclasses import dataclass, field


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
    """A run: its start, its stages by rule, what is expected of a job of a rule, and its running jobs by number.

    ``total`` is how many jobs there are after the last checkpoint, which may have added or spared some of any stage.
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
        """Return how long it takes from now, at the least if nothing is known of some jobs; a dash if of none.

        A job takes as long as others of its rule did in this run. Of a rule without any, what is expected counts, times
        how far off expectations were so far. Jobs run side by side as they did until now.
        """
        found = [(self.stages[rule], seconds) for rule, seconds in self.expected.items() if rule in self.stages]
        foreseen = sum(stage.done * seconds for stage, seconds in found)
        pace = sum(stage.seconds for stage, _ in found if stage.done) / foreseen if foreseen else 1.0
        rest, known = [0.0], self.total == sum(stage.jobs for stage in self.stages.values())
        for rule, stage in self.stages.items():
            if stage.done == stage.jobs or rule == "all":
                continue
            each = stage.seconds / stage.done if stage.done else pace * self.expected.get(rule, 0)
            running = self._running(rule)
            rest += [max(0.0, each - (now - job.start)) for job in running]
            rest += [each] * (stage.jobs - stage.done - len(running))
            known &= stage.done > 0 or rule in self.expected
        spent = sum(stage.seconds for stage in self.stages.values())
        spent += sum(now - job.start for job in self.running.values())
        side_by_side = max(1.0, spent / max(1e-3, now - self.start))
        seconds = max(*rest, sum(rest) / side_by_side)
        return "-" if not known and not seconds else f"{'' if known else '> '}{duration(seconds)}"

    def _running(self, rule: str) -> list[Job]:
        return [job for job in self.running.values() if job.rule == rule]


def duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
