"""The comparison of texts from the KL of every draw and held-out sequence.

All children read the same sequences of the run's held-out split, so two texts are compared by paired differences. A
mean varies with the sequences and with the draws of text; its variance is the sum of both parts. Intervals use
Student's t with the degrees of freedom of Welch and Satterthwaite. Those of differences hold for all of them together
(Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

COMMON, OWN = "heldout", "own"
LEVEL = 0.05

Measured = Mapping[str, Mapping[str, np.ndarray]]  # by candidate and held-out text


@dataclass(frozen=True)
class Interval:
    """A mean, its standard error, and its two-sided interval."""

    value: float
    standard_error: float
    low: float
    high: float


def kl_of(tables: Sequence[pd.DataFrame], model: str) -> dict[str, np.ndarray]:
    """Return KL ``(draws, sequences)`` by held-out text from tables of `tables.SAMPLES`, one per draw.

    Args:
        tables: one candidate's tables.
        model: ``'child'`` or ``'finetuned'``.
    """
    result = {}
    for text in (COMMON, OWN):
        rows = [
            table[(table["model"] == model) & (table["task"] == text) & (table["metric"] == "kl")] for table in tables
        ]
        result[text] = np.stack([frame.sort_values("sample")["value"].to_numpy() for frame in rows])
    return result


def _variance(samples: np.ndarray) -> tuple[float, int]:
    """Return the variance of a mean, and its degrees of freedom."""
    return float(samples.var(ddof=1)) / len(samples), len(samples) - 1


def _around(value: float, variances: Sequence[tuple[float, int]], comparisons: int = 1) -> Interval:
    """Return the interval of a mean whose variance is a sum of parts, each with its degrees of freedom."""
    from scipy.stats import t

    total = math.fsum(variance for variance, _ in variances)
    if total == 0:
        return Interval(value, 0.0, value, value)
    freedom = total**2 / math.fsum(variance**2 / n for variance, n in variances)
    half = float(t.ppf(1 - LEVEL / (2 * comparisons), freedom)) * math.sqrt(total)
    return Interval(value, math.sqrt(total), value - half, value + half)


def mean_kl(kl: np.ndarray) -> Interval:
    """Return the mean of KL ``(draws, sequences)``."""
    return _around(float(kl.mean()), [_variance(kl.mean(axis=0)), _variance(kl.mean(axis=1))])


def difference(kl: np.ndarray, other: np.ndarray, comparisons: int = 1) -> Interval:
    """Return the mean of ``kl - other``, paired by sequence; draws of two texts are independent.

    Args:
        kl: ``(draws, sequences)``.
        other: ``(draws, sequences)`` of another text, or ``(1, sequences)`` of a model without draws.
        comparisons: number of differences whose intervals must hold together at 95 %.
    """
    variances = [_variance(kl.mean(axis=0) - other.mean(axis=0))]
    variances += [_variance(values.mean(axis=1)) for values in (kl, other) if len(values) > 1]
    return _around(float(kl.mean() - other.mean()), variances, comparisons)


def compare(trained: Measured, before: Measured) -> list[dict[str, Any]]:
    """Return the rows of `tables.TRIALS`, for each held-out text the candidates from the smallest KL.

    Args:
        trained: KL ``(draws, sequences)`` of trained children, by candidate and held-out text (`COMMON`, `OWN`).
        before: KL ``(1, sequences)`` of the child before training, likewise.
    """
    order = sorted(trained, key=lambda name: (float(trained[name][COMMON].mean()), name))
    best, others = order[0], order[1:]
    to_best = {name: difference(trained[name][COMMON], trained[best][COMMON], len(others)) for name in others}
    ties = [name for name in others if to_best[name].low <= 0]
    rows = []
    for name in order:
        verdict = "worse" if name in others and name not in ties else "tie" if ties else "best"
        shown = to_best.get(name)
        rows.append(_row(name, COMMON, trained[name][COMMON], before[name][COMMON], shown, verdict))
    rows += [_row(name, OWN, trained[name][OWN], before[name][OWN], None, None) for name in order]
    return rows


def _row(
    name: str, text: str, kl: np.ndarray, before: np.ndarray, to_best: Interval | None, verdict: str | None
) -> dict[str, Any]:
    mean, gain = mean_kl(kl), difference(kl, before)
    return {
        "candidate": name,
        "heldout": text,
        "draws": len(kl),
        "sequences": kl.shape[1],
        "kl_before": float(before.mean()),
        "kl": mean.value,
        "standard_error": mean.standard_error,
        "change": gain.value,
        "change_low": gain.low,
        "change_high": gain.high,
        "difference": None if to_best is None else to_best.value,
        "difference_low": None if to_best is None else to_best.low,
        "difference_high": None if to_best is None else to_best.high,
        "verdict": verdict,
    }


def sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the result in one line."""
    common = [row for row in rows if row["heldout"] == COMMON]
    first, second = common[0], common[1]
    kl = ", ".join(f"{row['candidate']} {row['kl']:.3f} ± {row['standard_error']:.3f}" for row in common)
    tied = [row["candidate"] for row in common if row["verdict"] == "tie"]
    verdict = f"a tie of {', '.join(tied)}" if tied else f"{first['candidate']} is the best"
    bounds = f"{second['difference_low']:+.3f} to {second['difference_high']:+.3f}"
    return (
        f"{verdict}; KL on the run's held-out text: {kl}, before training {first['kl_before']:.3f}; "
        f"{second['candidate']} - {first['candidate']}: {second['difference']:+.3f} ({bounds})"
    )
