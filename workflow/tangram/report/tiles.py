"""Maps of tiles: architectures by layer and kind, and scores by layer and variant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

from tangram.blocks.architecture import Architecture
from tangram.blocks.base import KINDS, NO_OP, PARENT
from tangram.report.data import Estimate, rows_of
from tangram.report.style import estimate, ink_on, short, themed

WIDTH = 1000.0  # of every map, in SVG units
LABEL = 96.0  # width of the labels left of the tiles
_RAMP = ("#f3f1e7", "#f2d9a6", "#eeb07a", "#dd7f6b", "#b9546f", "#843672", "#4b2262", "#1d1238")  # light to dark


def _rect(x: float, y: float, width: float, height: float, look: str, tip: str = "") -> str:
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {look}>{title}</rect>'


def _text(x: float, y: float, text: str, size: float, anchor: str = "middle", fill: str = "var(--muted)") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'
    )


def _svg(height: float, parts: list[str], label: str) -> str:
    box = f'viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(label)}"'
    return f'<svg class="tiles" {box}>{"".join(parts)}</svg>'


def _look(variant: str, colors: Mapping[str, str]) -> str:
    if variant == NO_OP:
        return 'fill="none" stroke="var(--muted)" stroke-dasharray="2 2" stroke-width="0.8" pointer-events="all"'
    return f'fill="{themed(colors[variant])}"'


def skyline(
    architecture: Architecture,
    colors: Mapping[str, str],
    relative_cost: Mapping[tuple[str, str], float],
    tips: Mapping[tuple[int, str, str], str],
) -> str:
    """Draw one architecture by layer, attention above, FFN below, with heights as shares of the parent's time.

    Args:
        architecture: the variants.
        colors: colors by variant.
        relative_cost: seconds relative to the parent's subblock, by kind and variant; 1 if missing.
        tips: texts of tooltips, by layer, kind and variant.
    """
    lot = (WIDTH - LABEL) / max(1, len(architecture.layers))
    gap, height, street = min(4.0, lot * 0.12), 92.0, 18.0
    middle = height + 6
    parts = [
        _text(LABEL - 12, middle - height / 2 + 4, "attention", 13, "end"),
        _text(LABEL - 12, middle + street + height / 2 + 4, "FFN", 13, "end"),
        _text(LABEL - 12, middle + 13, "layer", 10.5, "end"),
    ]
    every = 1 if lot >= 16 else 5
    for layer, choice in enumerate(architecture.layers):
        x = LABEL + layer * lot
        if layer % every == 0:
            parts.append(_text(x + lot / 2, middle + 13, str(layer), 10.5))
        for kind, up in (("attention", True), ("ffn", False)):
            variant = getattr(choice, kind)
            share = relative_cost.get((kind, variant), 0.0 if variant == NO_OP else 1.0)
            share = 1.0 if variant == PARENT else min(max(share, 0.0), 1.15)
            top = middle - height if up else middle + street
            tall = height * share
            start = middle - tall if up else middle + street
            tip = f"layer {layer} · {kind} · {variant}{tips.get((layer, kind, variant), '')}"
            empty = 'fill="var(--lot)" stroke="none"'
            if variant == NO_OP:
                empty = _look(variant, colors)
            parts.append(_rect(x + gap / 2, top, lot - gap, height, empty, tip))
            if tall > 0.5 and variant != NO_OP:
                parts.append(_rect(x + gap / 2, start, lot - gap, tall, _look(variant, colors), tip))
            if lot >= 22 and short(variant):
                inside = tall > 18
                y = (start + tall / 2 + 4) if inside else (start - 5 if up else start + tall + 13)
                fill = ink_on(colors[variant]) if inside else "var(--ink)"
                parts.append(_text(x + lot / 2, y, short(variant), 11, fill=fill))
    return _svg(2 * height + street + 12, parts, "map of the chosen architecture, by layer and kind")


def architecture_rows(
    rows: Sequence[tuple[str, tuple[str, ...], Architecture, bool]], colors: Mapping[str, str]
) -> str:
    """Draw architectures as two thin rows of tiles each.

    Args:
        rows: label, notes for the right margin, architecture, and whether it starts a group.
        colors: colors by variant.
    """
    layers = max((len(architecture.layers) for _, _, architecture, _ in rows), default=1)
    left, right = 130.0, 150.0
    lot = (WIDTH - left - right) / layers
    tall, y = 13.0, -34.0
    parts = []
    for label, notes, architecture, opens in rows:
        y += 48.0 if opens else 37.0
        parts.append(_text(left - 12, y + tall + 5, label, 12, "end", "var(--ink)" if opens else "var(--muted)"))
        for i, note in enumerate(notes):
            parts.append(_text(WIDTH - right + 12 + 62 * i, y + tall + 5, note, 12, "start"))
        for layer, choice in enumerate(architecture.layers):
            for j, kind in enumerate(KINDS):
                variant = getattr(choice, kind)
                x = left + layer * lot
                tip = f"{label} · layer {layer} · {kind} · {variant}"
                parts.append(_rect(x + 0.75, y + j * (tall + 1.5), lot - 1.5, tall, _look(variant, colors), tip))
    return _svg(y + 32, parts, "architectures of all targets, by layer and kind")


def ramp(share: float) -> str:
    """Return the color of a share between 0 (light) and 1 (dark)."""
    place = min(max(share, 0.0), 1.0) * (len(_RAMP) - 1)
    low = min(int(place), len(_RAMP) - 2)
    mix = [
        round(int(_RAMP[low][i : i + 2], 16) * (low + 1 - place) + int(_RAMP[low + 1][i : i + 2], 16) * (place - low))
        for i in (1, 3, 5)
    ]
    return "#" + "".join(f"{channel:02x}" for channel in mix)


def score_map(
    scores: pd.DataFrame, variants: Mapping[str, list[str]], num_layers: int, chosen: Architecture | None
) -> str:
    """Draw replace-1-block KL by variant (rows) and layer (columns), on a logarithmic scale, with a legend.

    Args:
        scores: rows of SCORES of metric ``kl``.
        variants: variants by kind, from top to bottom.
        num_layers: number of columns.
        chosen: architecture whose pieces a dot marks, or None.
    """
    marked = set(chosen.pieces()) if chosen else set()
    values = {
        (row.kind, row.variant, row.layer): (row.value, row.standard_error, row.tokens) for row in rows_of(scores)
    }
    positive = [value for value, _, _ in values.values() if value > 0 and math.isfinite(value)]
    low, high = (math.log10(min(positive)), math.log10(max(positive))) if positive else (0.0, 1.0)
    # A score near 0, of a piece that changes nothing, must not stretch the scale.
    low = max(low, high - 4)
    lot, tall, y = (WIDTH - LABEL) / max(1, num_layers), 20.0, 16.0
    parts = [
        _text(LABEL + (layer + 0.5) * lot, 10, str(layer), 10) for layer in range(0, num_layers, 1 if lot >= 16 else 5)
    ]
    for kind in KINDS:
        if not variants[kind]:
            continue
        parts.append(_text(0, y + 14, "attention" if kind == "attention" else "FFN", 12, "start", "var(--ink)"))
        y += 20
        for variant in variants[kind]:
            parts.append(_text(LABEL - 12, y + 14, variant, 12, "end"))
            for layer in range(num_layers):
                score = values.get((kind, variant, layer))
                if score is None:
                    continue
                value, error, tokens = score
                share = (math.log10(value) - low) / ((high - low) or 1) if value > 0 else 0.0
                tip = f"layer {layer} · {kind} {variant} · KL {estimate(Estimate(value, error))} ({tokens:,} tokens)"
                x, color = LABEL + layer * lot, ramp(share)
                parts.append(_rect(x + 0.5, y + 0.5, lot - 1, tall - 1, f'fill="{color}"', tip))
                if (layer, kind, variant) in marked:
                    look = f'fill="{ink_on(color)}" pointer-events="none"'
                    parts.append(f'<circle cx="{x + lot / 2:.1f}" cy="{y + tall / 2:.1f}" r="3" {look}/>')
            y += tall
        y += 8
    y += 6
    steps = 60
    parts.append(_text(LABEL + steps * 5 + 12, y + 10, "KL, nats per token", 11, "start"))
    for i in range(steps):
        parts.append(_rect(LABEL + i * 5, y, 5.3, 12, f'fill="{ramp(i / (steps - 1))}"'))
    for exponent in range(math.ceil(low), math.floor(high) + 1):
        x = LABEL + (exponent - low) / ((high - low) or 1) * steps * 5
        parts.append(_text(x, y + 26, f"{10.0**exponent:g}", 11))
    return _svg(y + 32, parts, "replace-1-block KL by layer and variant")


def swatch(variant: str, colors: Mapping[str, str]) -> str:
    """Return a small tile of a variant's color."""
    tile = _rect(1, 1, 14, 14, _look(variant, colors))
    return f'<svg class="swatch" viewBox="0 0 16 16" aria-hidden="true">{tile}</svg>'
