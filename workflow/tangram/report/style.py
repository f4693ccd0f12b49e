"""Colors of variants and formats of numbers, the same in all parts of the report."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

import math
from collections.abc import Sequence

from tangram.blocks import PARENT, Variant, block_class
from tangram.config import LAYERS_DROPPED, SEARCHES
from tangram.report.data import UNIFORM, strength
from tangram.report.estimates import CONFIDENCE, Estimate

# `themed` replaces these colors of figures by the page's CSS variables, so that figures follow its theme.
INK, MUTED, RULE, PAPER = "#101418", "#606870", "#d0d4d8", "#fefefc"
# Teal, mauve and ocher: distinct in lightness and with color blindness.
CHILD, BASELINE, RIVAL = "#0f8a7e", "#a0567b", "#8f6a08"
CSS_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    CHILD: "var(--child)",
    BASELINE: "var(--baseline)",
    RIVAL: "var(--rival)",
}


def _mix(mild: str, strong: str, share: float) -> str:
    pairs = [(int(mild[i : i + 2], 16), int(strong[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def variant_colors(variants: Sequence[str]) -> dict[str, str]:
    """Return a color per variant: a hue per family, darker for smaller variants, equal for all precisions."""
    sources = {variant: str(Variant.parse(variant).source) for variant in sorted({PARENT, *variants}, key=strength)}
    families: dict[str, list[str]] = {}
    for source in dict.fromkeys(sources.values()):
        families.setdefault(Variant.parse(source).family, []).append(source)
    colors = {}
    for members in families.values():
        mild, strong = block_class(members[0]).hue
        for i, source in enumerate(members):
            colors[source] = _mix(mild, strong, share=(i + 1) / len(members)) if mild != strong else mild
    return {variant: colors[source] for variant, source in sources.items()}


def solution_color(solution: str) -> str:
    """Return the color of a solution's lines and points: children, uniform precision, or layers dropped and others."""
    if solution in UNIFORM:
        return RIVAL
    return BASELINE if solution in (LAYERS_DROPPED, *SEARCHES) else CHILD


def themed(text: str) -> str:
    """Replace the drawing colors by the page's CSS variables."""
    for color, variable in CSS_VARIABLES.items():
        text = text.replace(color, variable)
    return text


def ink_on(color: str) -> str:
    """Return black or white, whichever has more contrast to a color."""
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "#14181c"


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with ``digits`` significant digits and grouped thousands; None and NaN become a dash."""
    if value is None or math.isnan(value):
        return "–"
    if value == 0 or math.isinf(value):
        return "0" if value == 0 else "∞"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if places > 5:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    return f"{value:,.{places}f}".replace("-", "−")


def estimate(measured: Estimate | None, signed: bool = False, least: int = 0) -> str:
    """Format an estimate as ``value ± standard error``, with one or two digits of the error.

    Args:
        measured: the estimate; None becomes a dash, as does a standard error that is not finite.
        signed: show the sign of a positive value.
        least: minimum number of decimal places.
    """
    if measured is None:
        return "–"
    value, error, _ = measured
    if not error or not math.isfinite(value):
        text = number(value)
    elif not math.isfinite(error):
        text = f"{number(value)} ± –"
    else:
        leading = math.floor(math.log10(error))
        places = min(6, max(least, (error < 3.55 * 10.0**leading) - leading))  # the particle data group's rule
        text = f"{value:,.{places}f} ± {error:,.{places}f}".replace("-", "−")
    return f"+{text}" if signed and value > 0 else text


def percent_of(share: Estimate | None) -> str:
    """Format a share and its standard error as numbers in per cent, without the sign; None becomes a dash."""
    return estimate(share.times(100), least=1) if share else "–"


def percent_interval(share: Estimate | None) -> str:
    """Format the 95 % interval of a share as numbers in per cent; None becomes a dash."""
    if share is None or share.standard_error is None or not math.isfinite(share.standard_error):
        return "–"
    half = CONFIDENCE * share.standard_error
    return f"{100 * (share.value - half):.1f} to {100 * (share.value + half):.1f}".replace("-", "−")


def percent(value: float, signed: bool = False, places: int = 1) -> str:
    """Format a share as a percentage."""
    return f"{value:{'+' if signed else ''}.{places}%}".replace("-", "−").replace("%", " %")


def seconds(value: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def short(variant: str) -> str:
    """Return a variant's label on a small tile: ``g1``, ``.5``, ``lin``, or nothing for the parent's and no-op."""
    return block_class(variant).label.format(size=Variant.parse(variant).number.removeprefix("0"))
