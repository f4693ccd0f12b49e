"""Line figures that the studies of selection share: means with bands over a variable, one colour per policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tangram.report.drawing import label_ends, log_axis, new_figure, render
from tangram.report.style import BASELINE, CHILD, MUTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = (CHILD, BASELINE, "#1d5ea8", "#e69f00", "#7b48a3", "#2e9e6b", "#c8553d", MUTED, "#b9b43a", "#7fb8a4")


@dataclass(frozen=True)
class Line:
    """One line: means over x, and optionally half the height of a band around them."""

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    band: np.ndarray | None = None
    colour: str = CHILD
    dashed: bool = False


def line_grid(
    name: str,
    alt: str,
    panels: Mapping[str, Mapping[str, Line]],
    xlabel: str,
    ylabel: str,
    columns: int = 2,
    log: str = "",
    size: tuple[float, float] = (11.0, 3.6),
    labelled: Sequence[str] | None = None,
) -> str:
    """Draw lines in panels.

    Args:
        name: salts the figure's ids.
        alt: what a reader who cannot see it is told.
        panels: lines by their labels, by the panels' titles.
        xlabel: under the lowest panels.
        ylabel: beside the first ones.
        columns: panels side by side.
        log: ``'x'``, ``'y'`` or ``'xy'``: logarithmic axes.
        size: width of the figure and height of a row, in inches.
        labelled: titles of the panels that name their lines at their ends; all without.
    """

    def draw() -> Figure:
        rows = -(-len(panels) // columns)
        figure, axes = new_figure(columns, rows, size[0], size[1] * rows)
        for index, (axis, (title, lines)) in enumerate(zip(axes, panels.items(), strict=False)):
            for line in lines.values():
                x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
                axis.plot(
                    x, y, color=line.colour, ls=(0, (3, 3)) if line.dashed else "-", lw=1.0 if line.dashed else 1.6
                )
                if line.band is not None:
                    axis.fill_between(x, y - line.band, y + line.band, color=line.colour, alpha=0.15, lw=0)
            if "x" in log:
                if max(max(line.x) for line in lines.values()) > 1024:  # doubled from one to the next
                    axis.set_xscale("log", base=2)
                    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
                    axis.xaxis.set_minor_formatter(lambda value, _: "")
                else:
                    log_axis(axis, "x")
            if "y" in log:
                log_axis(axis)
            axis.set_title(title)
            if index >= len(panels) - columns:
                axis.set_xlabel(xlabel)
            if index % columns == 0:
                axis.set_ylabel(ylabel)
            if labelled is None or title in labelled:
                right = max(float(line.x[-1]) for line in lines.values())
                ends = [(right, float(line.y[-1]), label, line.colour) for label, line in lines.items()]
                label_ends(axis, ends, size=8.5)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        return figure

    return render(name, alt, draw)
