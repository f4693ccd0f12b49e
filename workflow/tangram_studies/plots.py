"""Figures of the studies: lines with bands, points, arms with intervals, maps of embeddings, filters; one palette."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from tangram.report.document import Figure
from tangram.report.drawing import label_ends, log_axis, new_figure, render
from tangram.report.style import BASELINE, CHILD, INK, MUTED
from tangram_studies.study import Interval, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

# Adjacent colors differ under every common color blindness. The first color is that of the paper's method.
PALETTE = (CHILD, BASELINE, "#1d5ea8", "#e69f00", "#7b48a3", "#7fb8a4", "#c8553d", MUTED, "#b9b43a", INK)
CLASS_PALETTE = (
    *("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2"),
    *("#b6992d", "#b07aa1", "#d37295", "#9c755f", "#79706e"),
)
# Where the label of a point may be: its distance in points, and its alignment; the nearest places come first.
LABEL_SIDES: tuple[tuple[int, Literal["left", "right"]], ...] = ((6, "left"), (-6, "right"))
LABEL_PLACES = [((dx, dy), side) for dy in (0, 9, -9, 18, -18, 27, -27, 36, -36) for dx, side in LABEL_SIDES]
MOST_TICKS = 8  # a logarithmic axis of more points has ticks at powers only


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """Return a color per name, in their order."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


@dataclass(frozen=True)
class Line:
    """One line: values over x, and optionally a band from ``low`` to ``high`` around them."""

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    color: str = CHILD
    dashed: bool = False
    low: Sequence[float] | np.ndarray | None = None
    high: Sequence[float] | np.ndarray | None = None
    marked: bool = False


def spread_line(x: Sequence[float] | np.ndarray, values: np.ndarray, color: str, dashed: bool = False) -> Line:
    """Return the means of ``values`` ``(x, replications)`` with a band of one standard deviation."""
    mean, deviation = values.mean(1), values.std(1)
    return Line(x, mean, color, dashed, mean - deviation, mean + deviation)


def interval_line(points: Sequence[tuple[float, Interval]], color: str) -> Line:
    """Return intervals over x as a marked line with a band."""
    columns = zip(*((x, value.estimate, value.low, value.high) for x, value in points), strict=True)
    x, y, low, high = (np.array(column, dtype=float) for column in columns)
    return Line(x, y, color, low=low, high=high, marked=True)


def draw_lines(
    name: str,
    alt: str,
    panels: Mapping[str, Mapping[str, Line]],
    x_label: str,
    y_label: str,
    columns: int = 1,
    log: str = "",
    size: tuple[float, float] = (6.6, 3.2),
    labeled: Sequence[str] | None = None,
    legend: bool = False,
    zero: bool = False,
) -> str:
    """Draw lines in panels, each named at its end.

    Args:
        name: salt of the figure's ids.
        alt: alternative text.
        panels: lines by label, by the panel's title.
        x_label: label of the lowest panels' x axes.
        y_label: label of the first column's y axes.
        columns: number of panels in a row.
        log: ``'x'``, ``'y'`` or ``'xy'``: logarithmic axes.
        size: width of the figure and height of a row, in inches.
        labeled: titles of the panels that name their lines; all by default.
        legend: name the lines in a legend instead.
        zero: draw a horizontal line at 0.
    """

    def draw() -> Drawn:
        rows = -(-len(panels) // columns)
        figure, axes = new_figure(columns, rows, size[0], size[1] * rows)
        for index, (axis, (title, lines)) in enumerate(zip(axes, panels.items(), strict=False)):
            for label, line in lines.items():
                _draw_line(axis, label, line, "y" in log)
            if zero:
                axis.axhline(0, color=MUTED, linewidth=0.8)
            if "x" in log:
                _log_x(axis, sorted({float(x) for line in lines.values() for x in line.x}))
            if "y" in log:
                log_axis(axis)
            axis.set_title(title)
            if index >= len(panels) - columns:
                axis.set_xlabel(x_label)
            if index % columns == 0:
                axis.set_ylabel(y_label)
            if legend:
                axis.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.01, 0.5))
            elif labeled is None or title in labeled:
                right = max(float(line.x[-1]) for line in lines.values())
                ends = [(right, float(line.y[-1]), label, line.color) for label, line in lines.items()]
                label_ends(axis, ends, size=8.5)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        return figure

    return render(name, alt, draw)


def _draw_line(axis: Axes, label: str, line: Line, log_y: bool) -> None:
    x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
    style: dict[str, Any] = {"ls": (0, (3, 3)), "lw": 1.0} if line.dashed else {}
    style |= {"marker": "o", "markersize": 3} if line.marked else {}
    axis.plot(x, y, color=line.color, label=label, **style)
    if line.low is not None and line.high is not None:
        low = np.maximum(line.low, y.clip(min=0) / 50) if log_y else np.asarray(line.low)
        axis.fill_between(x, low, np.asarray(line.high), color=line.color, alpha=0.15, lw=0)


def _log_x(axis: Axes, values: Sequence[float]) -> None:
    """Make the x axis logarithmic, with a tick at each value if there are few, else at powers of 2 or of 10."""
    if len(values) > MOST_TICKS and values[-1] <= 1024:
        log_axis(axis, "x")
        return
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.xaxis.set_minor_formatter(lambda value, _: "")
    if len(values) <= MOST_TICKS:
        axis.set_xticks(values)


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Return x, mean, low and high over seeds of one arm's values; without a spread, all three are the mean."""
    intervals = []
    for x, group in rows.groupby("x", sort=True):
        values = group["value"].to_numpy()
        band = interval(values) if len(values) > 1 else None
        mean = float(np.mean(values))
        intervals.append({"x": x, "mean": mean, "low": band.low if band else mean, "high": band.high if band else mean})
    return pd.DataFrame(intervals)


def lines_figure(
    name: str,
    title: str,
    caption: str,
    panels: Mapping[str, pd.DataFrame],
    x_label: str,
    y_label: str,
    arms: Sequence[str] | None = None,
    log: str = "",
    height: float = 2.7,
) -> Figure:
    """Draw measurements (`arm`, `x`, `seed`, `value`) as lines with 95 % bands, one panel per frame.

    Args:
        name: name of the figure, unique on its page.
        title: heading of the figure.
        caption: caption of the figure.
        panels: rows to draw, by panel title.
        x_label: label of the x axes.
        y_label: label of the first y axis.
        arms: arms to draw, in this order; all by default.
        log: ``'x'``, ``'y'`` or ``'xy'``: logarithmic axes.
        height: height in inches.
    """
    colors = colors_of(list(arms or dict.fromkeys(arm for rows in panels.values() for arm in rows["arm"])))

    def line(rows: pd.DataFrame, color: str) -> Line:
        x, mean, low, high = means(rows)[["x", "mean", "low", "high"]].to_numpy().T
        return Line(x, mean, color, low=low, high=high, marked=True)

    lines = {
        panel: {
            arm: line(rows[rows["arm"] == arm], color) for arm, color in colors.items() if (rows["arm"] == arm).any()
        }
        for panel, rows in panels.items()
    }
    size = (min(10.0, 1.2 + 3.6 * len(panels)), height)
    svg = draw_lines(name, title, lines, x_label, y_label, len(panels), log, size)
    return Figure(svg, caption, title)


def points_figure(
    name: str,
    title: str,
    caption: str,
    panels: Mapping[str, pd.DataFrame],
    x_label: str,
    y_label: str,
    colors: Mapping[str, str],
    log: str = "",
) -> Figure:
    """Draw one labeled point per arm (columns `arm`, `x`, `value`), one panel per frame."""

    def draw() -> Drawn:
        figure, axes = new_figure(len(panels), 1, 10.0, 4.2)
        for i, (axis, (panel, rows)) in enumerate(zip(axes, panels.items(), strict=True)):
            points = [*zip(rows["arm"].astype(str), rows["x"].tolist(), rows["value"].tolist(), strict=True)]
            for arm, x, y in points:
                axis.plot([x], [y], "o", color=colors[arm], markersize=5)
            axis.set_title(panel)
            axis.set_xlabel(x_label)
            if i == 0:
                axis.set_ylabel(y_label)
            if "y" in log:
                axis.set_yscale("log")
            axis.margins(x=0.18)
            _label_points(axis, points, colors)
        return figure

    return Figure(render(name, title, draw), caption, title)


def _label_points(axis: Axes, points: Sequence[tuple[str, float, float]], colors: Mapping[str, str]) -> None:
    """Write every point's arm beside it, where no other point or label is, as far as there is such a place."""
    from matplotlib.transforms import Bbox

    axis.autoscale_view()
    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in axis.transData.transform([point[1:] for point in points])]
    for arm, x, y in points:
        label = axis.annotate(arm, (x, y), (0, 0), textcoords="offset points", color=colors[arm], fontsize=8)
        label.set_verticalalignment("center")
        for offset, side in [*LABEL_PLACES, LABEL_PLACES[0]]:
            label.xyann = offset
            label.set_horizontalalignment(side)
            box = label.get_window_extent()
            if not box.count_overlaps(taken):
                break
        taken.append(box)


def draw_arms(name: str, alt: str, panels: Mapping[str, Mapping[str, Interval]], unit: str) -> str:
    """Return dots with 95 % intervals: a panel per readout, a row per arm."""

    def draw() -> Drawn:
        colors = colors_of(list(next(iter(panels.values()))))
        arms = list(colors)
        figure, axes = new_figure(len(panels), 1, 9.2, 0.9 + 0.27 * len(arms), sharey=True)
        for axis, (title, accuracies) in zip(axes, panels.items(), strict=True):
            for row, arm in enumerate(arms):
                point = accuracies[arm]
                axis.plot([point.low, point.high], [row, row], color=colors[arm], linewidth=2.2)
                axis.plot(point.estimate, row, "o", color=colors[arm], markersize=5.5)
            axis.set(title=title, xlabel=unit, yticks=range(len(arms)), yticklabels=arms, ylim=(len(arms) - 0.5, -0.5))
            axis.tick_params(axis="y", length=0)
        return figure

    return render(name, alt, draw)


def draw_series(
    name: str,
    alt: str,
    series: Mapping[str, Sequence[tuple[float, Interval]]],
    x: str,
    y: str,
    log: str = "",
    zero: bool = False,
) -> str:
    """Return intervals over x per arm, named in a legend; a point interval draws no band.

    Args:
        name: salt of the figure's ids.
        alt: alternative text.
        series: (x, interval) by arm.
        x: label of the x axis.
        y: label of the y axis.
        log: see `draw_lines`.
        zero: draw a horizontal line at 0.
    """
    colors = colors_of(list(series))
    lines = {arm: interval_line(points, colors[arm]) for arm, points in series.items()}
    return draw_lines(name, alt, {"": lines}, x, y, log=log, legend=True, zero=zero)


def flat(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings ``(n, d)`` projected on their two principal axes, scaled to unit deviation, ``(n, 2)``."""
    centered = embeddings - embeddings.mean(0)
    left, strengths, _ = np.linalg.svd(centered, full_matrices=False)
    points = left[:, :2] * strengths[:2]
    signs = np.sign(points[np.abs(points).argmax(0), [0, 1]])  # the SVD does not determine them
    return points * signs / max(float(points.std()), 1e-12)


def draw_maps(name: str, alt: str, maps: Mapping[str, tuple[np.ndarray, np.ndarray]], classes: Sequence[str]) -> str:
    """Return a scatter plot per arm: points ``(n, 2)``, colored by their labels ``(n,)``, with a legend of classes."""

    def draw() -> Drawn:
        from matplotlib.lines import Line2D

        figure, axes = new_figure(len(maps), 1, 9.2, 9.2 / len(maps) + 0.55)
        for axis, (arm, (points, labels)) in zip(axes, maps.items(), strict=True):
            for label in np.unique(labels):
                chosen = points[labels == label]
                axis.plot(
                    chosen[:, 0],
                    chosen[:, 1],
                    "o",
                    markersize=3,
                    markeredgewidth=0,
                    alpha=0.8,
                    color=CLASS_PALETTE[int(label) % len(CLASS_PALETTE)],
                )
            axis.set(title=arm, xticks=[], yticks=[])
            axis.grid(visible=False)
        key = [
            Line2D(
                [], [], marker="o", linestyle="", markersize=5, color=CLASS_PALETTE[i % len(CLASS_PALETTE)], label=text
            )
            for i, text in enumerate(classes)
        ]
        figure.legend(handles=key, loc="outside lower center", ncols=5, frameon=False, fontsize=8.5)
        return figure

    return render(name, alt, draw)


def draw_filters(name: str, alt: str, filters: Mapping[str, np.ndarray], columns: int = 8) -> str:
    """Return first-layer filters ``(filters, channels, side, side)`` per arm, each scaled to its own extremes."""

    def draw() -> Drawn:
        count, _, side, _ = next(iter(filters.values())).shape
        shape = (-(-count // columns) * (side + 1) - 1) / (columns * (side + 1) - 1)
        figure, axes = new_figure(len(filters), 1, 9.2, 9.2 / len(filters) * shape + 0.45)
        for axis, (arm, weights) in zip(axes, filters.items(), strict=True):
            count, channels, side, _ = weights.shape
            rows = -(-count // columns)
            canvas = np.ones((rows * (side + 1) - 1, columns * (side + 1) - 1, 4), dtype=np.float32)
            canvas[..., 3] = 0
            for i, kernel in enumerate(weights):
                low, high = kernel.min(), kernel.max()
                scaled = (kernel - low) / max(float(high - low), 1e-12)
                top, left = (i // columns) * (side + 1), (i % columns) * (side + 1)
                patch = canvas[top : top + side, left : left + side]
                patch[..., :3] = scaled.transpose(1, 2, 0) if channels == 3 else scaled.mean(0)[..., None]
                patch[..., 3] = 1
            axis.imshow(canvas, interpolation="nearest")
            axis.set(title=arm, xticks=[], yticks=[])
            axis.grid(visible=False)
            axis.spines[:].set_visible(False)
        return figure

    return render(name, alt, draw)
