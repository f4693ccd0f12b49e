"""Maps of tiles: architectures by layer and kind, and scores by layer and variant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

from tangram.blocks.architecture import Architecture
from tangram.blocks.base import ALL_PRECISIONS, HEAD, KINDS, NO_OP, PARENT, Variant
from tangram.report.data import rows_of
from tangram.report.estimates import Estimate
from tangram.report.names import KIND_NAMES
from tangram.report.style import estimate, ink_on, short, themed

WIDTH = 1000.0  # of every map, in SVG units
LABEL = 96.0  # width of the labels left of the tiles
HEAD_LOTS = 1.5  # the head's tile and the half column before it
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


def _tile(x: float, y: float, width: float, height: float, variant: str, colors: Mapping[str, str], tip: str) -> str:
    """Return a tile in the variant's color, with the texture of its precision from the page's patterns."""
    tile = _rect(x, y, width, height, _look(variant, colors), tip)
    precision = Variant.parse(variant).precision
    if precision is None:
        return tile
    color = colors[variant]  # the parent's follows the page's theme
    ink = "theme" if themed(color) != color else "light" if ink_on(color) == "#ffffff" else "dark"
    return tile + _rect(x, y, width, height, f'fill="url(#{precision}-{ink})" pointer-events="none"')


def skyline(
    architecture: Architecture,
    colors: Mapping[str, str],
    relative_cost: Mapping[tuple[str, str], float],
    tips: Mapping[tuple[int, str, str], str],
) -> str:
    """Draw one architecture by layer and its head, with heights as shares of the parent's time.

    Attention is above the layers' numbers, FFN below, and the head above at the right end.

    Args:
        architecture: the variants.
        colors: colors by variant.
        relative_cost: seconds relative to the parent's subblock, by kind and variant; 1 if missing.
        tips: texts of tooltips, by layer, kind and variant.
    """
    lot = (WIDTH - LABEL) / (max(1, len(architecture.layers)) + HEAD_LOTS)
    gap, height, street = min(4.0, lot * 0.12), 92.0, 18.0
    middle = height + 6
    parts = [
        _text(LABEL - 12, middle - height / 2 + 4, "attention", 13, "end"),
        _text(LABEL - 12, middle + street + height / 2 + 4, "FFN", 13, "end"),
        _text(LABEL - 12, middle + 13, "layer", 10.5, "end"),
    ]
    every = 1 if lot >= 16 else 5
    for layer in range(0, len(architecture.layers), every):
        parts.append(_text(LABEL + (layer + 0.5) * lot, middle + 13, str(layer), 10.5))
    head_x = LABEL + (len(architecture.layers) + HEAD_LOTS - 1) * lot
    parts.append(_text(head_x + lot / 2, middle + 13, "head", 10.5))
    for layer, kind, variant in architecture.pieces():
        x = head_x if kind == HEAD else LABEL + layer * lot
        share = relative_cost.get((kind, variant), 0.0 if variant == NO_OP else 1.0)
        share = 1.0 if variant == PARENT else min(max(share, 0.0), 1.15)
        up = kind != "ffn"
        top = middle - height if up else middle + street
        tall = height * share
        start = middle - tall if up else middle + street
        where = kind if kind == HEAD else f"layer {layer} · {kind}"
        tip = f"{where} · {variant}{tips.get((layer, kind, variant), '')}"
        empty = _look(variant, colors) if variant == NO_OP else 'fill="var(--lot)" stroke="none"'
        parts.append(_rect(x + gap / 2, top, lot - gap, height, empty, tip))
        if tall > 0.5 and variant != NO_OP:
            parts.append(_tile(x + gap / 2, start, lot - gap, tall, variant, colors, tip))
        if lot >= 22 and short(variant):
            parts.append(_inside(x + lot / 2, start, tall, up, variant, colors[variant]))
    return _svg(2 * height + street + 12, parts, "map of the chosen architecture, by layer and kind")


def _inside(x: float, start: float, tall: float, up: bool, variant: str, color: str) -> str:
    """Return a tile's label, inside the tile on its plain color, or beside a low tile."""
    if tall <= 18:
        return _text(x, start - 5 if up else start + tall + 13, short(variant), 11, fill="var(--ink)")
    middle, width = start + tall / 2, 6.5 * len(short(variant)) + 3
    plain = ""
    if Variant.parse(variant).precision is not None:
        plain = _rect(x - width / 2, middle - 7, width, 14, f'fill="{themed(color)}" pointer-events="none"')
    return plain + _text(x, middle + 4, short(variant), 11, fill=ink_on(color))


def architecture_rows(
    rows: Sequence[tuple[str, tuple[str, ...], Architecture, bool]], colors: Mapping[str, str]
) -> str:
    """Draw architectures as two thin rows of tiles each, with the head's tile at their right end.

    Args:
        rows: label, notes for the right margin, architecture, and whether it starts a group.
        colors: colors by variant.
    """
    layers = max((len(architecture.layers) for _, _, architecture, _ in rows), default=1)
    left, right = 150.0, 150.0
    lot = (WIDTH - left - right) / (layers + HEAD_LOTS)
    tall, y = 13.0, -34.0
    parts = []
    for label, notes, architecture, opens in rows:
        y += 48.0 if opens else 37.0
        parts.append(_text(left - 12, y + tall + 5, label, 12, "end", "var(--ink)" if opens else "var(--muted)"))
        for i, note in enumerate(notes):
            parts.append(_text(WIDTH - right + 12 + 62 * i, y + tall + 5, note, 12, "start"))
        for layer, kind, variant in architecture.pieces():
            tip = f"{label} · {kind if kind == HEAD else f'layer {layer} · {kind}'} · {variant}"
            place = len(architecture.layers) + HEAD_LOTS - 1 if kind == HEAD else layer
            top, height = (y, 2 * tall + 1.5) if kind == HEAD else (y + KINDS.index(kind) * (tall + 1.5), tall)
            parts.append(_tile(left + place * lot + 0.75, top, lot - 1.5, height, variant, colors, tip))
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
    scores: pd.DataFrame,
    variants: Mapping[str, list[str]],
    num_layers: int,
    chosen: Architecture | None,
    colors: Mapping[str, str],
) -> str:
    """Draw replace-1-block KL by variant (rows) and layer (columns), on a logarithmic scale, with a legend.

    A small tile beside each variant's name shows its color and texture. The head has one column.

    Args:
        scores: rows of SCORES of metric ``kl``.
        variants: variants by kind, from top to bottom.
        num_layers: number of columns.
        chosen: architecture whose pieces a dot marks, or None.
        colors: colors by variant.
    """
    marked = set(chosen.pieces()) if chosen else set()
    values = {
        (row.kind, row.variant, row.layer): (row.value, row.standard_error, row.tokens) for row in rows_of(scores)
    }
    positive = [value for value, _, _ in values.values() if value > 0 and math.isfinite(value)]
    low, high = (math.log10(min(positive)), math.log10(max(positive))) if positive else (0.0, 1.0)
    # A score near 0, of a piece that changes nothing, must not stretch the scale.
    low = max(low, high - 4)
    longest = max((len(variant) for names in variants.values() for variant in names), default=0)
    left = max(LABEL, 7.2 * longest + 34)
    lot, tall, y = (WIDTH - left) / max(1, num_layers), 20.0, 16.0
    parts = [
        _text(left + (layer + 0.5) * lot, 10, str(layer), 10) for layer in range(0, num_layers, 1 if lot >= 16 else 5)
    ]
    for kind, names in variants.items():
        if not names:
            continue
        parts.append(_text(0, y + 14, KIND_NAMES[kind], 12, "start", "var(--ink)"))
        y += 20
        for variant in names:
            parts.append(_text(left - 26, y + 14, variant, 12, "end"))
            parts.append(_tile(left - 20, y + 3.5, 13, 13, variant, colors, variant))
            for layer in range(num_layers):
                score = values.get((kind, variant, layer))
                if score is None:
                    continue
                value, error, tokens = score
                share = (math.log10(value) - low) / ((high - low) or 1) if value > 0 else 0.0
                where = kind if kind == HEAD else f"layer {layer} · {kind}"
                tip = f"{where} {variant} · KL {estimate(Estimate(value, error))} ({tokens:,} tokens)"
                x, color = left + layer * lot, ramp(share)
                parts.append(_rect(x + 0.5, y + 0.5, lot - 1, tall - 1, f'fill="{color}"', tip))
                if (layer, kind, variant) in marked:
                    look = f'fill="{ink_on(color)}" pointer-events="none"'
                    parts.append(f'<circle cx="{x + lot / 2:.1f}" cy="{y + tall / 2:.1f}" r="3" {look}/>')
            y += tall
        y += 8
    parts += _ramp_legend(left, y + 6, low, high)
    return _svg(y + 38, parts, "replace-1-block KL by layer and variant")


def _ramp_legend(left: float, y: float, low: float, high: float) -> list[str]:
    """Return the legend of KL between two powers of ten."""
    steps = 60
    parts = [_text(left + steps * 5 + 12, y + 10, "KL, nats per token", 11, "start")]
    parts += [_rect(left + i * 5, y, 5.3, 12, f'fill="{ramp(i / (steps - 1))}"') for i in range(steps)]
    for exponent in range(math.ceil(low), math.floor(high) + 1):
        x = left + (exponent - low) / ((high - low) or 1) * steps * 5
        parts.append(_text(x, y + 26, f"{10.0**exponent:g}", 11))
    return parts


def swatch(variant: str, colors: Mapping[str, str]) -> str:
    """Return a small tile of a variant's color and texture."""
    tile = _tile(1, 1, 14, 14, variant, colors, "")
    return f'<svg class="swatch" viewBox="0 0 16 16" aria-hidden="true">{tile}</svg>'


def legend(variants: Sequence[str], colors: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the legend of tiles: names and swatches of all structures, then of all precisions."""
    parsed = [Variant.parse(variant) for variant in variants]
    structures = dict.fromkeys([PARENT, *(str(variant.source) for variant in parsed)])
    used = {variant.precision for variant in parsed}
    precisions = [precision for precision in ALL_PRECISIONS if precision in used]
    named = {name: name for name in structures} | {p: str(Variant(PARENT, precision=p)) for p in precisions}
    looks = {variant: colors[str(Variant.parse(variant).source)] for variant in named.values()}
    return [(name, swatch(variant, looks)) for name, variant in named.items()]
