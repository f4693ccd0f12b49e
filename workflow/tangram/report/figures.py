"""The report's plots, from a run's tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tangram.blocks.base import KINDS, Variant
from tangram.report.comparison import Scored
from tangram.report.data import BEST, Results
from tangram.report.drawing import label_ends, log_axis, new_figure, render, wide
from tangram.report.estimates import Estimate
from tangram.report.learning_curve import FACTOR, forecast
from tangram.report.names import solution_name
from tangram.report.style import CHILD, INK, MUTED, PAPER, solution_color
from tangram.tables import VALIDATION_KL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 80  # maximum number per curve


def _token_axis(axis: Axes) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.set_xlabel("tokens")
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def bld_losses(results: Results, colors: Mapping[str, str]) -> str | None:
    """Draw every piece's held-out BLD loss before (ring) and after training (dot), by layer, one panel per variant."""
    frame = results.library
    groups = [(kind, variant) for kind in KINDS for variant in results.variants(kind)]
    groups = [g for g in groups if Variant.parse(g[1]).precision is None]  # quantized pieces are not trained
    groups = [g for g in groups if len(frame[(frame["kind"] == g[0]) & (frame["variant"] == g[1])])]
    if not groups:
        return None

    def draw() -> Figure:
        columns = min(4, len(groups))
        rows = math.ceil(len(groups) / columns)
        figure, axes = new_figure(columns, rows, 11.0, 2.4 * rows + 0.3, sharex=True, sharey=True)
        for axis, (kind, variant) in zip(axes, groups, strict=False):
            part = frame[(frame["kind"] == kind) & (frame["variant"] == variant)].sort_values("layer")
            color = colors[variant]
            trained = part[part["bld_loss_after"].notna()]
            after = trained["bld_loss_after"]
            axis.vlines(trained["layer"], trained["bld_loss_before"], after, color=color, lw=1.2)
            axis.plot(part["layer"], part["bld_loss_before"], "o", ms=3.6, mfc=PAPER, mec=color, mew=1)
            improved = trained["kept"] == "trained"
            axis.plot(trained["layer"][improved], after[improved], "o", ms=3.6, color=color)
            axis.plot(trained["layer"][~improved], after[~improved], "x", ms=4.5, color=INK, mew=1.1)
            count = f"trained kept {int(improved.sum())}/{len(trained)}" if len(trained) else "not trained"
            axis.set_title(f"{'attention' if kind == 'attention' else 'FFN'} {variant}", color=INK)
            axis.text(0.99, 1.04, count, transform=axis.transAxes, ha="right", color=MUTED, fontsize=8.5)
            axis.set_yscale("log")
        for axis in axes[len(groups) :]:
            axis.set_visible(False)
        log_axis(axes[0])
        for i in range(0, len(groups), columns):
            axes[i].set_ylabel("normalized MSE")
        for i, axis in enumerate(axes[: len(groups)]):
            if i + columns >= len(groups):
                axis.set_xlabel("layer")
                axis.tick_params(labelbottom=True)
        return figure

    return render("bld-losses", "block distillation losses before and after training, by layer", draw)


def thin(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Average a curve over at most ``points`` consecutive groups of equal size."""
    parts = min(points, len(x))
    groups = zip(np.array_split(x, parts), np.array_split(y, parts), strict=True)
    means = [(float(a.mean()), float(b.mean())) for a, b in groups]
    return np.array([a for a, _ in means]), np.array([b for _, b in means])


def bld_curves(results: Results, colors: Mapping[str, str]) -> str | None:
    """Draw the BLD training loss relative to its start: the median over layers, with a band of the middle 80 %."""
    frame = results.distillation[results.distillation["metric"] == "loss"]
    if not len(frame):
        return None
    named = frame["series"].str.extract(r"^(\w+) (\S+) layer (\d+)$")
    frame = frame.assign(kind=named[0], variant=named[1])
    kinds = [kind for kind in KINDS if (frame["kind"] == kind).any()]
    if not kinds:  # only pairs were trained
        return None

    def draw() -> Figure:
        figure, axes = new_figure(len(kinds), 1, 11.0 if len(kinds) > 1 else 6.0, 3.3, sharey=True)
        ends: dict[str, list[tuple[float, float, str, str]]] = {kind: [] for kind in kinds}
        for axis, kind in zip(axes, kinds, strict=True):
            for variant in results.variants(kind):
                part = frame[(frame["kind"] == kind) & (frame["variant"] == variant)]
                if not len(part):
                    continue
                table = part.pivot_table(index="tokens", columns="series", values="value").sort_index()
                smooth = table.rolling(max(1, len(table) // 8)).median().dropna()  # batches are noisy
                relative = (smooth / smooth.iloc[0]).to_numpy()
                tokens = smooth.index.to_numpy(dtype=float)
                bands = [thin(tokens, np.nanquantile(relative, share, axis=1)) for share in (0.1, 0.5, 0.9)]
                axis.fill_between(bands[0][0], bands[0][1], bands[2][1], color=colors[variant], alpha=0.14, lw=0)
                axis.plot(*bands[1], color=colors[variant])
                ends[kind].append((bands[1][0][-1], bands[1][1][-1], variant, colors[variant]))
            axis.set_title(f"{'attention' if kind == 'attention' else 'FFN'}: loss relative to its start")
            _token_axis(axis)
        axes[0].set_ylim(bottom=0)  # after all plots, as the axes share their range
        for axis, kind in zip(axes, kinds, strict=True):
            label_ends(axis, ends[kind])
        return figure

    return render("bld-curves", "block distillation curves by variant", draw)


def gkd_curves(results: Results) -> str | None:
    """Draw the finetuning losses over tokens, one line per child, with the baselines in their color."""
    frame = results.finetuning
    metrics = [m for m in ("kl", "cosine", "lm_loss") if (frame["metric"] == m).any()]
    if not metrics:
        return None
    names = {
        "kl": "KL(parent ‖ child), nats per token",
        "cosine": "hidden-state cosine loss",
        "lm_loss": "LM loss, nats per token",
    }
    trained = set(zip(frame["target"], frame["solution"], strict=True))
    groups = [child for child in results.children if child in trained]

    def draw() -> Figure:
        figure, axes = new_figure(len(metrics), 1, 11.0 if len(metrics) > 1 else 7.0, 3.6)
        for axis, metric in zip(axes, metrics, strict=True):
            ends = []
            for target, solution in groups:
                picked = (frame["target"] == target) & (frame["solution"] == solution) & (frame["metric"] == metric)
                part = frame[picked].sort_values("step")
                if not len(part):
                    continue
                color = solution_color(solution)
                values = part["value"].rolling(max(1, len(part) // 8), min_periods=1).mean()
                x, y = thin(part["tokens"].to_numpy(dtype=float), values.to_numpy(dtype=float))
                primary = (target, solution) == (results.settings.primary_target, BEST)
                axis.plot(x, y, color=color, lw=2.2 if primary else 1.1, ls="-" if solution.isdigit() else (0, (4, 2)))
                ends.append((x[-1], y[-1], solution_name(results, target, solution), color))
            axis.set_title(names[metric])
            _token_axis(axis)
            axis.set_ylim(bottom=0)
            label_ends(axis, ends, size=8)
        return figure

    return render("gkd-curves", "finetuning curves by child", draw)


def validation_points(results: Results) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    """Return tokens and KL of every child's learning curve, by target and solution; a curve has at least two points."""
    frame = results.finetuning[results.finetuning["metric"] == VALIDATION_KL]
    points = {}
    for child in results.children:
        part = frame[(frame["target"] == child[0]) & (frame["solution"] == child[1])].sort_values("tokens")
        if len(part) > 1:
            points[child] = part["tokens"].astype(float).tolist(), part["value"].tolist()
    return points


def learning_curves(results: Results) -> str | None:
    """Draw KL on text that is not trained on over the tokens of finetuning, with the primary child's forecast."""
    points = validation_points(results)
    if not points:
        return None

    def draw() -> Figure:
        figure, (axis,) = new_figure(1, 1, 7.0, 3.6)
        ends, primary = [], (results.settings.primary_target, BEST)
        for (target, solution), (tokens, kl) in points.items():
            color, chosen = solution_color(solution), (target, solution) == primary
            style = "-" if solution.isdigit() else (0, (4, 2))
            axis.plot(tokens, kl, "o", ls=style, ms=3.6, color=color, lw=2.2 if chosen else 1.1)
            ends.append((tokens[-1], kl[-1], solution_name(results, target, solution), color))
            if chosen and (found := forecast(tokens, kl)) is not None:
                beyond = np.geomspace(tokens[-1], FACTOR * tokens[-1], 24)
                low, high = zip(*(found.law.interval(x) for x in beyond), strict=True)
                axis.plot(beyond, found.law.at(beyond), ls=(0, (1, 1.5)), lw=1.2, color=color)
                axis.fill_between(beyond, low, high, color=color, alpha=0.14, lw=0)
        axis.set_xscale("symlog", linthresh=min(tokens[1] for tokens, _ in points.values()))
        axis.set_xlim(left=0)
        axis.set_ylim(0, 1.05 * max(max(kl) for _, kl in points.values()))
        axis.set_xlabel("tokens")
        axis.set_ylabel("KL, nats per token")
        label_ends(axis, ends, size=8)
        return figure

    return render("learning-curves", "KL over tokens of finetuning by child", draw)


def score_against_truth(results: Results, children: Sequence[Scored]) -> str | None:
    """Draw Σ replace-1-block score against the true KL of the assembled children, with the line of equality."""
    if not children:
        return None

    def draw() -> Figure:
        figure, axes = new_figure(1, 1, 5.4, 4.4)
        axis = axes[0]
        values = [value for child in children for value in (child.score, child.kl.value)]
        logarithmic = wide(values)
        top = (1.6 if logarithmic else 1.08) * max(values)
        bottom = min(values) / 1.6 if logarithmic else 0.0
        axis.plot([bottom, top], [bottom, top], color=MUTED, lw=0.8, ls=(0, (2, 3)))
        axis.annotate("equal", (top, top), (-18, -4), textcoords="offset points", ha="right", va="top", color=MUTED)
        for child in children:
            color = solution_color(child.solution)
            axis.errorbar(
                child.score,
                child.kl.value,
                yerr=child.kl.bar,
                fmt="o",
                color=color,
                ms=5.5,
                elinewidth=1,
            )
            axis.annotate(
                solution_name(results, child.target, child.solution),
                (child.score, child.kl.value),
                (7, -3),
                textcoords="offset points",
                color=color,
                fontsize=8.5,
                va="top",
            )
        axis.set_xlabel("Σ replace-1-block score, nats per token")
        axis.set_ylabel("true KL before finetuning, nats per token")
        axis.set_xlim(bottom, top)
        axis.set_ylim(bottom, top)
        for which in "xy" if logarithmic else "":
            log_axis(axis, which)
        return figure

    return render("score-truth", "sum of scores against true KL of the children", draw)


def task_accuracies(rows: Sequence[tuple[str, Mapping[str, Estimate]]]) -> str | None:
    """Draw accuracies of parent, child and finetuned child with bars of one standard error, one row per task.

    Args:
        rows: tasks from top to bottom, each with its accuracy by model.
    """
    if not rows:
        return None

    def draw() -> Figure:
        figure, axes = new_figure(1, 1, 7.6, 0.62 * len(rows) + 1.1)
        axis = axes[0]
        looks = {
            "parent": ("D", INK, INK, 0.2),
            "child": ("o", CHILD, PAPER, 0.0),
            "finetuned": ("o", CHILD, CHILD, -0.2),
        }
        for i, (_, accuracies) in enumerate(rows):
            for model, (marker, color, fill, shift) in looks.items():
                accuracy = accuracies.get(model)
                if accuracy is None:
                    continue
                y = len(rows) - 1 - i + shift
                axis.errorbar(
                    accuracy.value * 100,
                    y,
                    xerr=accuracy.bar * 100,
                    fmt=marker,
                    color=color,
                    mfc=fill,
                    ms=5.5,
                    elinewidth=1.2,
                )
                if i == 0:
                    label = {"child": "before finetuning"}.get(model, model)
                    end = ((accuracy.value + accuracy.bar) * 100, y)
                    axis.annotate(
                        label, end, (6, 0), textcoords="offset points", color=color, va="center", fontsize=8.5
                    )
        axis.set_yticks(range(len(rows)), [name.replace("_", " ") for name, _ in rows][::-1], color=INK)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("%, ± 1 standard error")
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.margins(x=0.12)
        return figure

    return render("tasks", "task accuracies of parent and child", draw)
