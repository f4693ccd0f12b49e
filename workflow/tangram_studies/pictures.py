"""The figures that the studies of representations share: arms with intervals, curves, maps of embeddings, filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tangram.report.drawing import new_figure, render
from tangram.report.style import BASELINE, CHILD, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tangram_studies.study import Interval

# Apart for every common colour blindness; the first is the paper's method.
ARM_COLOURS = (CHILD, BASELINE, "#e69f00", "#1d5ea8", "#7fb8a4", "#c8553d", MUTED, INK)
CLASS_COLOURS = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#e15759",
    "#76b7b2",
    "#b6992d",
    "#b07aa1",
    "#d37295",
    "#9c755f",
    "#79706e",
)


def arm_colours(arms: Sequence[str]) -> dict[str, str]:
    """Return a colour per arm, in their order."""
    return {arm: ARM_COLOURS[i % len(ARM_COLOURS)] for i, arm in enumerate(arms)}


def draw_arms(name: str, alt: str, panels: Mapping[str, Mapping[str, Interval]], unit: str) -> str:
    """Return dots with 95 % intervals: a panel per readout, a row per arm."""

    def draw() -> Figure:
        arms = list(next(iter(panels.values())))
        colours = arm_colours(arms)
        figure, axes = new_figure(len(panels), 1, 9.2, 0.9 + 0.27 * len(arms), sharey=True)
        for axis, (title, found) in zip(axes, panels.items(), strict=True):
            for row, arm in enumerate(arms):
                point = found[arm]
                axis.plot([point.low, point.high], [row, row], color=colours[arm], linewidth=2.2)
                axis.plot(point.estimate, row, "o", color=colours[arm], markersize=5.5)
            axis.set(title=title, xlabel=unit, yticks=range(len(arms)), yticklabels=arms, ylim=(len(arms) - 0.5, -0.5))
            axis.tick_params(axis="y", length=0)
        return figure

    return render(name, alt, draw)


def draw_lines(
    name: str,
    alt: str,
    series: Mapping[str, Sequence[tuple[float, Interval]]],
    x: str,
    y: str,
    logarithmic: bool = False,
    zero: bool = False,
) -> str:
    """Return lines with bands of 95 % intervals, named in a legend; a point interval draws no band."""

    def draw() -> Figure:
        figure, axes = new_figure(1, 1, 6.6, 3.2)
        axis = axes[0]
        colours = arm_colours(list(series))
        for arm, points in series.items():
            places = [place for place, _ in points]
            axis.plot(places, [p.estimate for _, p in points], color=colours[arm], marker="o", markersize=3, label=arm)
            axis.fill_between(
                places, [p.low for _, p in points], [p.high for _, p in points], color=colours[arm], alpha=0.15, lw=0
            )
        if zero:
            axis.axhline(0, color=MUTED, linewidth=0.8)
        if logarithmic:
            axis.set_xscale("log")
            ticks = sorted({place for points in series.values() for place, _ in points})
            axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], minor=False)
        axis.set(xlabel=x, ylabel=y)
        axis.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.01, 0.5))
        return figure

    return render(name, alt, draw)


def flat(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings ``(n, d)`` on their two principal axes, each pair scaled to unit spread, ``(n, 2)``."""
    centred = embeddings - embeddings.mean(0)
    left, strengths, _ = np.linalg.svd(centred, full_matrices=False)
    places = left[:, :2] * strengths[:2]
    signs = np.sign(places[np.abs(places).argmax(0), [0, 1]])  # the SVD leaves them open
    return places * signs / max(float(places.std()), 1e-12)


def draw_maps(name: str, alt: str, maps: Mapping[str, tuple[np.ndarray, np.ndarray]], classes: Sequence[str]) -> str:
    """Return a map per arm: places ``(n, 2)`` and labels ``(n,)``, coloured by class, the classes' names below."""

    def draw() -> Figure:
        from matplotlib.lines import Line2D

        figure, axes = new_figure(len(maps), 1, 9.2, 9.2 / len(maps) + 0.55)
        for axis, (arm, (places, labels)) in zip(axes, maps.items(), strict=True):
            for label in np.unique(labels):
                chosen = places[labels == label]
                axis.plot(
                    chosen[:, 0],
                    chosen[:, 1],
                    "o",
                    markersize=3,
                    markeredgewidth=0,
                    alpha=0.8,
                    color=CLASS_COLOURS[int(label) % len(CLASS_COLOURS)],
                )
            axis.set(title=arm, xticks=[], yticks=[])
            axis.grid(visible=False)
        key = [
            Line2D(
                [], [], marker="o", linestyle="", markersize=5, color=CLASS_COLOURS[i % len(CLASS_COLOURS)], label=text
            )
            for i, text in enumerate(classes)
        ]
        figure.legend(handles=key, loc="outside lower center", ncols=5, frameon=False, fontsize=8.5)
        return figure

    return render(name, alt, draw)


def draw_filters(name: str, alt: str, filters: Mapping[str, np.ndarray], columns: int = 8) -> str:
    """Return first-layer filters ``(filters, channels, side, side)`` per arm, each scaled to its own extremes."""

    def draw() -> Figure:
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
