"""The frontier: KL and perplexity over measured speed-up, of children, rivals and parents."""

# ruff: noqa: RUF001 - the typographic signs are meant

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tangram.config import LAYERS_DROPPED
from tangram.report.data import BEST, UNIFORM, Results
from tangram.report.drawing import label_ends, log_axis, new_figure, render, wide
from tangram.report.estimates import PACKED_KEY, PARENT_KEY, Estimate, Key
from tangram.report.names import SEARCH_NAMES
from tangram.report.style import INK, PAPER, number, solution_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[Estimate, Estimate]]  # speed over the stock parent, and value


class _Series(NamedTuple):
    """One line of the frontier, or points of a rival of uniform precision or of another search."""

    label: str
    solution: str
    model: str

    @property
    def finetuned(self) -> bool:
        return self.model == "finetuned"

    @property
    def is_points(self) -> bool:
        return self.solution in UNIFORM or self.solution in SEARCH_NAMES

    def points(self, results: Results, metric: str) -> Points:
        """Return the measured points of all targets, from slow to fast."""
        keys = [Key(target, self.solution, self.model) for target in results.settings.targets]
        pairs = [(results.speedup(key), results.heldout(key, metric)) for key in keys]
        return sorted((speed, value) for speed, value in pairs if speed and value)


def _series() -> list[_Series]:
    names = {BEST: "Tangram", LAYERS_DROPPED: "layers dropped"} | SEARCH_NAMES
    names |= {solution: f"parent in {precision}" for solution, precision in UNIFORM.items()}
    stages = {"finetuned": "finetuned", "child": "before"}
    return [
        _Series(
            name if solution in UNIFORM or solution in SEARCH_NAMES else f"{name}, {stages[model]}", solution, model
        )
        for solution, name in names.items()
        for model in stages
    ]


def frontier(results: Results) -> str | None:
    """Draw held-out KL and perplexity over measured speed-up, of children and rivals, before and after GKD."""
    if not any(series.points(results, "kl") for series in _series()):
        return None

    def draw() -> Figure:
        figure, axes = new_figure(2, 1, 11.0, 4.8)
        titles = {"kl": "KL(parent ‖ child), nats per token", "perplexity": "perplexity, log scale"}
        for axis, (metric, title) in zip(axes, titles.items(), strict=True):
            _panel(axis, results, metric)
            axis.set_title(title)
        return figure

    return render("frontier", "held-out KL and perplexity over measured speed-up", draw)


def _panel(axis: Axes, results: Results, metric: str) -> None:
    """Draw one metric's lines and points, the parents and the chosen child."""
    points = {series: line for series in _series() if (line := series.points(results, metric))}
    values = [value.value for line in points.values() for _, value in line]
    logarithmic = metric == "kl" and wide(values)
    start = _parents(axis, results, metric, at_bottom=logarithmic)
    ends = []
    for series, line in points.items():
        end = _line(axis, series, line, None if logarithmic else start)
        if series.finetuned or not series.is_points:  # an open square below a labeled one needs no label
            ends.append(end)
    _mark_chosen(axis, results, metric)
    axis.set_xlabel("measured speed-up over the parent in stock transformers")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.1f} ×")
    packed = results.speedup(PACKED_KEY)
    if packed:
        over = (lambda x: x / packed.value, lambda x: x * packed.value)
        above = axis.secondary_xaxis("top", functions=over)
        above.set_xlabel("over the packed parent")
        above.xaxis.set_major_formatter(lambda value, _: f"{value:.1f} ×")
    if metric == "perplexity" or logarithmic:
        log_axis(axis)
    else:
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
    # The range follows the points, not their error bars, which are wide on a busy machine.
    speeds = [1.0, *(speed.value for line in points.values() for speed, _ in line)]
    room = 0.08 * (max(speeds) - min(speeds) or 1)
    axis.set_xlim(min(speeds) - room, max(speeds) + room)
    label_ends(axis, ends)


def _parents(axis: Axes, results: Results, metric: str, at_bottom: bool) -> tuple[float, float] | None:
    """Draw the parents, at the bottom of a logarithmic axis of KL; return where the lines of children begin."""
    value = results.heldout(PARENT_KEY, metric)
    if value is None:
        return None
    height = 0.0 if at_bottom else value.value
    shown = [
        (key, speed) for key in dict.fromkeys((PARENT_KEY, results.best_parent)) if (speed := results.speedup(key))
    ]
    transform = axis.get_xaxis_transform() if at_bottom else axis.transData
    for key, speed in shown:
        axis.plot([speed.value], [height], marker="D", ms=6, color=INK, transform=transform, clip_on=False, zorder=4)
        axis.annotate(
            key.model if key == PACKED_KEY else "parent",
            (speed.value, height),
            (7, 5 if at_bottom else -3),
            xycoords=transform,
            textcoords="offset points",
            va="bottom" if at_bottom else "top",
            color=INK,
        )
    return shown[-1][1].value, height


def _line(
    axis: Axes, series: _Series, points: Points, start: tuple[float, float] | None
) -> tuple[float, float, str, str]:
    """Draw points of speed and value, with a line from the parent unless the series is of points.

    Returns:
        The line's end, label and color for `label_ends`.
    """
    x, y = [speed.value for speed, _ in points], [value.value for _, value in points]
    color = solution_color(series.solution)
    if not series.is_points:
        line_x, line_y = ([start[0], *x], [start[1], *y]) if start else (x, y)
        width, dashes = (1.6, "-") if series.finetuned else (1.0, (0, (3, 3)))
        axis.plot(line_x, line_y, color=color, lw=width, ls=dashes)
    axis.errorbar(
        x,
        y,
        xerr=[speed.bar for speed, _ in points],
        yerr=[value.bar for _, value in points],
        fmt="s" if series.is_points else "o",
        color=color,
        ms=5.5,
        mfc=color if series.finetuned else PAPER,
        mew=1.3,
        elinewidth=1,
        capsize=0,
    )
    return x[-1], y[-1], series.label, color


def _mark_chosen(axis: Axes, results: Results, metric: str) -> None:
    """Draw a ring around the primary target's best child, with its speed and value."""
    chosen = results.final(results.settings.primary_target, BEST)
    speed, value = (results.speedup(chosen), results.heldout(chosen, metric)) if chosen else (None, None)
    if not speed or not value:
        return
    axis.plot([speed.value], [value.value], marker="o", ms=14, mfc="none", mec=INK, mew=1.3)
    axis.annotate(
        f"chosen: {speed.value:.2f} ×, {number(value.value)}",
        (speed.value, value.value),
        (12, -15),
        textcoords="offset points",
        color=INK,
        weight="bold",
    )
