"""The result of a study: claims with verdicts, the measurements that support them, and a page with figures."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from tangram.cli import Runtime
from tangram.config import Studies
from tangram.errors import TangramError
from tangram.report.document import Cell, Fact, Figure, Note, Section, Table, render_document
from tangram.report.style import number

Verdict = Literal["supported", "refuted", "inconclusive"]


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided 95 % confidence interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{number(self.estimate)} [{number(self.low)}, {number(self.high)}]"


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Return the mean of independent values with its t-interval; for paired arms, pass their differences.

    Raises:
        ValueError: there are fewer than two values, which have no spread.
    """
    from scipy.stats import t

    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        raise ValueError("an interval needs at least two independent values")
    mean, error = float(array.mean()), float(array.std(ddof=1)) / math.sqrt(len(array))
    half = float(t.ppf(0.975, len(array) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def difference(values: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> Interval:
    """Return the difference of the means of two independent samples, with Welch's t-interval."""
    from scipy.stats import ttest_ind

    bounds = ttest_ind(values, others, equal_var=False).confidence_interval(0.95)
    return Interval(float(np.mean(values) - np.mean(others)), float(bounds.low), float(bounds.high))


def verdict_of(quantity: Interval, above: float = 0.0) -> Verdict:
    """Return the verdict on the claim that a quantity exceeds ``above``: inconclusive if its interval contains that.

    For a claim that a quantity is smaller, pass the negated difference.
    """
    if quantity.low > above:
        return "supported"
    return "refuted" if quantity.high < above else "inconclusive"


@dataclass(frozen=True)
class Claim:
    """A row of `tables.CLAIMS`: one statement of the paper, its measurement here and the verdict."""

    claim: str
    statement: str
    where: str
    measured: str
    verdict: Verdict
    seeds: int
    paper_value: str = "-"
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = "-"
    note: str = ""

    @classmethod
    def from_interval(cls, quantity: Interval, *, above: float = 0.0, **fields: Any) -> Claim:
        """Return a claim that an interval decides; see `verdict_of`."""
        fields.setdefault("measured", f"{quantity} {fields.get('unit', '')}".strip())
        verdict = verdict_of(quantity, above)
        return cls(estimate=quantity.estimate, low=quantity.low, high=quantity.high, verdict=verdict, **fields)


@dataclass(frozen=True)
class NotReproduced:
    """A result of the paper that is not reproduced here, the reason, and the way to run it with more resources."""

    result: str
    reason: str
    how: str


@dataclass(frozen=True)
class Job:
    """The inputs of a study.

    Attributes:
        settings: the slice of config that the study depends on, as JSON.
        inputs: paths of input files, and other text, by name.
        folder: folder for the study's files.
        runtime: device, dtype, seed and threads.
    """

    settings: str
    inputs: Mapping[str, str]
    folder: Path
    runtime: Runtime

    @property
    def studies(self) -> Studies:
        """Config section `studies`, for studies whose settings are that section alone."""
        return Studies.model_validate_json(self.settings)


def print_progress(text: str) -> None:
    """Print a line about a study's progress to standard error."""
    print(f"study: {text}", file=sys.stderr, flush=True)


@dataclass
class Study:
    """A finished study.

    Attributes:
        name: such as ``ntk``.
        title: the paper's title.
        paper: its arXiv number.
        claims: the paper's statements with verdicts.
        measurements: rows of `tables.MEASUREMENTS`.
        figures: figures and tables of the page.
        not_reproduced: results of the paper that are not reproduced here.
        notes: scale, deviations from the paper and surprises.
        about: scale and seeds, for the top of the page.
        unfinished: files and folders from which a killed run resumes; `write_study` removes them.
    """

    name: str
    title: str
    paper: str
    claims: list[Claim] = field(default_factory=list)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    figures: list[Figure | Table] = field(default_factory=list)
    not_reproduced: list[NotReproduced] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    about: str = ""
    unfinished: list[Path] = field(default_factory=list)

    def record(self, experiment: str, arm: str, seed: int, metric: str, value: float, x: float | None = None) -> None:
        """Add one measurement."""
        row = {"experiment": experiment, "arm": arm, "x": x, "seed": seed, "metric": metric, "value": float(value)}
        self.measurements.append(row)

    def frame(self, experiment: str) -> pd.DataFrame:
        """Return one experiment's measurements."""
        rows = pd.DataFrame(self.measurements)
        return rows[rows["experiment"] == experiment].reset_index(drop=True)

    def over_seeds(self, experiment: str, metric: str, arm: str, x: float | None = None) -> Interval:
        """Return the interval of an arm's values over its seeds."""
        rows = self.frame(experiment)
        rows = rows[(rows["metric"] == metric) & (rows["arm"] == arm)]
        return interval(rows[rows["x"].isna() if x is None else rows["x"] == x]["value"].to_numpy())

    def paired(self, experiment: str, metric: str, arm: str, baseline: str, x: float | None = None) -> Interval:
        """Return the interval of ``arm - baseline``, paired by seed.

        Raises:
            TangramError: an arm lacks a seed, or has one twice.
        """
        rows = self.frame(experiment)
        rows = rows[(rows["metric"] == metric) & (rows["x"].isna() if x is None else rows["x"] == x)]
        values = [rows[rows["arm"] == name].set_index("seed")["value"].sort_index() for name in (arm, baseline)]
        if not values[0].index.equals(values[1].index) or not values[0].index.is_unique:
            raise TangramError(f"study {self.name}: '{arm}' and '{baseline}' of {experiment} differ in their seeds")
        return interval((values[0] - values[1]).to_numpy())


def _claims_table(claims: Sequence[Claim]) -> Table:
    styles = {"supported": "verdict child", "refuted": "verdict baseline", "inconclusive": "verdict"}
    rows: list[list[Cell | str]] = [
        [
            claim.claim,
            f"{claim.statement} ({claim.where})" if claim.where else claim.statement,
            claim.paper_value,
            claim.measured + (f" — {claim.note}" if claim.note else ""),
            str(claim.seeds),
            Cell(claim.verdict, styles[claim.verdict]),
        ]
        for claim in claims
    ]
    columns = ["claim", "the paper's statement", "paper", "measured here", "seeds", "verdict"]
    return Table(columns, rows, labels=4)


def render_study(study: Study) -> str:
    """Return a study's page."""
    counts = {verdict: sum(c.verdict == verdict for c in study.claims) for verdict in Verdict.__args__}  # type: ignore[attr-defined]
    facts = [Fact(str(count), "", verdict, f"of {len(study.claims)} claims") for verdict, count in counts.items()]
    sections = [
        Section(
            "claims", "Claims", "The paper's statements beside the measurements here.", [_claims_table(study.claims)]
        ),
        Section("figures", "Figures", "", [*study.figures]),
        Section("notes", "Notes", "", [Note(text) for text in study.notes]),
    ]
    if study.not_reproduced:
        rows = [[entry.result, entry.reason, entry.how] for entry in study.not_reproduced]
        table = Table(["result", "why not here", "how to run it"], rows, labels=3)
        sections.append(Section("not-reproduced", "Not reproduced here", "", [table]))
    return render_document(
        run=f"study {study.name} · {study.about}",
        title=study.title,
        sentence=f"arXiv {study.paper}. Every interval is a 95 % confidence interval over seeds.",
        facts=facts,
        sections=sections,
    )


def write_study(study: Study, folder: str | Path, provenance: dict[str, str]) -> None:
    """Write `claims.parquet`, `measurements.parquet` and `report.html` into ``folder``; remove `Study.unfinished`.

    Raises:
        TangramError: two claims have the same name, or the folder cannot be written.
    """
    from tangram.files import write_text
    from tangram.tables import CLAIMS, MEASUREMENTS, write_table

    names = [claim.claim for claim in study.claims]
    if len(set(names)) < len(names):
        raise TangramError(f"study {study.name}: claims are not unique: {sorted(names)}")
    folder = Path(folder)
    write_table(study.measurements, MEASUREMENTS, folder / "measurements.parquet", provenance)
    write_table([asdict(claim) for claim in study.claims], CLAIMS, folder / "claims.parquet", provenance)
    write_text(folder / "report.html", render_study(study))
    for path in study.unfinished:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
