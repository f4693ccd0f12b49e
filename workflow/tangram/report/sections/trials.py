"""Section on the trials of text."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tangram.report.data import Results, rows_of
from tangram.report.document import Cell, Section, Table
from tangram.report.estimates import Estimate
from tangram.report.style import estimate
from tangram.trials.verdicts import COMMON

VERDICTS = {"best": "best", "tie": "a tie with the best", "worse": "worse"}


def trials_section(results: Results) -> Section:
    """Return the section `trials`; it has no parts in a run without trials."""
    section = Section(
        "trials",
        "Which text to distil on",
        "One child, the parent without some middle layers, is finetuned on each candidate text for the same number of "
        "tokens. Every child reads the same held-out sequences, so differences are paired.",
    )
    if results.trials.empty:
        return section
    rows: list[list[Cell | str]] = []
    for row in rows_of(results.trials):
        common = row.heldout == COMMON
        rows.append(
            [
                Cell(row.candidate, "total") if row.verdict == "best" else row.candidate,
                "the run’s" if common else "its own",  # noqa: RUF001 - typographic sign
                f"{row.kl_before:.3f}",
                estimate(Estimate(row.kl, row.standard_error)),
                _interval(row, "change"),
                _interval(row, "difference"),
                VERDICTS[row.verdict] if common else "–",  # noqa: RUF001
            ]
        )
    columns = ["text", "held-out text", "KL before", "KL after", "change, 95 %", "to the best, 95 %", "verdict"]
    first = results.trials.iloc[0]
    caption = (
        f"KL from the parent in nats per token, ± one standard error over {first['sequences']} sequences and "
        f"{first['draws']} draws of text. The intervals to the best hold together at 95 %."
    )
    section.parts.append(Table(columns, rows, labels=2, caption=caption))
    return section


def _interval(row: Any, name: str) -> str:
    """Return a difference with its interval; a dash without one."""
    value = getattr(row, name)
    if pd.isna(value):
        return "–"  # noqa: RUF001
    return f"{value:+.3f} ({getattr(row, f'{name}_low'):+.3f} to {getattr(row, f'{name}_high'):+.3f})"
