"""One way to draw a study's measurements: a line per arm over the experiment's variable, with its 95 % band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tangram.report.document import Figure
from tangram.report.drawing import label_ends, new_figure, render
from tangram.report.style import BASELINE, CHILD, INK, MUTED
from tangram_studies.study import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn

COLOURS = (CHILD, BASELINE, "#1d5ea8", "#e69f00", "#7b48a3", "#c8553d", "#3b7d2e", MUTED, "#8a7d1c", INK)


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Return x, mean, low and high over seeds of one arm's values; without a spread, all three are the mean."""
    found = []
    for x, group in rows.groupby("x", sort=True):
        values = group["value"].to_numpy()
        band = interval(values) if len(values) > 1 else None
        mean = float(np.mean(values))
        found.append({"x": x, "mean": mean, "low": band.low if band else mean, "high": band.high if band else mean})
    return pd.DataFrame(found)


def lines_figure(
    name: str,
    title: str,
    caption: str,
    panels: Mapping[str, pd.DataFrame],
    x_label: str,
    y_label: str,
    arms: Sequence[str] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    height: float = 2.7,
) -> Figure:
    """Draw measurements (`arm`, `x`, `seed`, `value`) as lines, one panel per frame.

    Args:
        name: of the figure, unique on its page.
        title: its heading.
        caption: what one should see.
        panels: rows to draw, by panel title.
        x_label: of the axes.
        y_label: of the first axis.
        arms: what to draw and in which order; everything by default.
        log_x: logarithmic axis.
        log_y: logarithmic axis.
        height: inches.
    """
    order = list(arms or dict.fromkeys(arm for rows in panels.values() for arm in rows["arm"]))
    colours = dict(zip(order, COLOURS * 3, strict=False))

    def draw() -> Drawn:
        figure, axes = new_figure(len(panels), 1, min(10.0, 1.2 + 3.6 * len(panels)), height)
        for i, (axis, (panel, rows)) in enumerate(zip(axes, panels.items(), strict=True)):
            ends = []
            for arm in order:
                own = rows[rows["arm"] == arm]
                if own.empty:
                    continue
                line = means(own)
                floor = line["mean"].clip(lower=0) / 50
                low = np.maximum(line["low"], floor) if log_y else line["low"]
                axis.fill_between(line["x"], low, line["high"], color=colours[arm], alpha=0.15, lw=0)
                axis.plot(line["x"], line["mean"], color=colours[arm], marker="o", markersize=3)
                ends.append((float(line["x"].iloc[-1]), float(line["mean"].iloc[-1]), arm, colours[arm]))
            axis.set_title(panel)
            axis.set_xlabel(x_label)
            if i == 0:
                axis.set_ylabel(y_label)
            if log_x:
                axis.set_xscale("log", base=2)
                axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            if log_y:
                axis.set_yscale("log")
            label_ends(axis, ends, size=8)
        return figure

    return Figure(render(name, title, draw), caption, title)


def points_figure(
    name: str,
    title: str,
    caption: str,
    panels: Mapping[str, pd.DataFrame],
    x_label: str,
    y_label: str,
    colours: Mapping[str, str],
    log_y: bool = False,
) -> Figure:
    """Draw one labelled point per arm (columns `arm`, `x`, `value`), one panel per frame."""

    def draw() -> Drawn:
        figure, axes = new_figure(len(panels), 1, 10.0, 4.2)
        for i, (axis, (panel, rows)) in enumerate(zip(axes, panels.items(), strict=True)):
            for arm, x, y in zip(rows["arm"].astype(str), rows["x"].tolist(), rows["value"].tolist(), strict=True):
                axis.plot([x], [y], "o", color=colours[arm], markersize=5)
                axis.annotate(arm, (x, y), (5, 3), textcoords="offset points", color=colours[arm], fontsize=8)
            axis.set_title(panel)
            axis.set_xlabel(x_label)
            if i == 0:
                axis.set_ylabel(y_label)
            if log_y:
                axis.set_yscale("log")
            axis.margins(x=0.18)
        return figure

    return Figure(render(name, title, draw), caption, title)
