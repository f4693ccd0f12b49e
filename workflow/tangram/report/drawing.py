"""Style and rendering of all figures: matplotlib, as small, deterministic inline SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

from tangram.report.style import INK, MUTED, RULE, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOK: dict[str, Any] = {
    "svg.fonttype": "none",
    "path.simplify": True,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.unicode_minus": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}
SCALE = 1.375  # pixels per point on a wide screen


def render(name: str, alt: str, draw: Callable[[], Figure]) -> str:
    """Return a figure as inline SVG in the page's colors and font, without unused ids.

    Args:
        name: salt of the ids, which must be unique within a page.
        alt: alternative text.
        draw: creates the figure.
    """
    import matplotlib

    look: Any = {**LOOK, "svg.hashsalt": name}
    with matplotlib.rc_context(look):
        figure = draw()
        stream = StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        width, height = figure.get_size_inches() * 72
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    # Wide figures fill the page; narrow ones keep the same font size.
    size = f'style="max-width: {width * SCALE:.0f}px"'
    head = f'<svg class="plot" {size} viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(alt)}">'
    text = head + text[text.index(">") + 1 :]
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"-?\d+\.\d{2,}", _short, tag[0]), text)  # in tags only
    text = text.replace("'DejaVu Sans'", "inherit").replace("font-family: inherit", "")
    text = re.sub(r"font: ([\w. ]*?)([\d.]+px) inherit(, [\w-]+)*", r"font-size: \2", text)
    return re.sub(r"\n\s*", "\n", themed(text))


def _short(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def new_figure(columns: int, rows: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure, sized in inches, and its axes row by row; ``options`` go to `Figure.subplots`."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.09))
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


WIDE = 20.0  # largest over smallest value, above which an axis from 0 hides the smallest


def wide(values: Sequence[float]) -> bool:
    """Return whether positive values need a logarithmic axis."""
    return min(values, default=0.0) > 0 and max(values) > WIDE * min(values)


def log_axis(axis: Axes, which: str = "y") -> None:
    """Make an axis logarithmic, with ticks also within decades if it spans less than two."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (axis.set_yscale if which == "y" else axis.set_xscale)("log")
    bounds = axis.get_ylim() if which == "y" else axis.get_xlim()
    decades = math.log10(bounds[1] / bounds[0])
    subs = (1.0,) if decades > 2 else (1.0, 2.0, 5.0) if decades > 0.9 else tuple(float(i) for i in range(1, 10))
    side = axis.yaxis if which == "y" else axis.xaxis
    side.set_major_locator(LogLocator(subs=subs, numticks=12))
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    side.set_minor_formatter(NullFormatter())


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move label positions apart to at least ``gap``; keep their order and stay close to the original positions."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    groups: list[list[int]] = []
    centers: list[float] = []
    for i in order:
        groups.append([i])
        centers.append(places[i])
        while len(groups) > 1 and centers[-1] - centers[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            joined = groups[-2] + groups[-1]
            groups[-2:] = [joined]
            centers[-2:] = [sum(places[j] for j in joined) / len(joined)]
    moved = [0.0] * len(places)
    for group, center in zip(groups, centers, strict=True):
        for j, i in enumerate(group):
            moved[i] = center + (j - (len(group) - 1) / 2) * gap
    return moved


def label_ends(axis: Axes, ends: Sequence[tuple[float, float, str, str]], size: float = 9, gap: float = 1.45) -> None:
    """Write labels right of the ends of lines, given as (x, y, text, color), without overlaps."""
    if not ends:
        return
    axis.autoscale_view()
    pixels = axis.transData.transform([(x, y) for x, y, _, _ in ends])
    scale = axis.figure.dpi / 72
    moved = spread([y for _, y in pixels], gap * size * scale)
    for (x, y, text, color), (_, old), new in zip(ends, pixels, moved, strict=True):
        offset = (8, (new - old) / scale)
        axis.annotate(
            text,
            (x, y),
            offset,
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=size,
            annotation_clip=False,
        )
