"""Sections on the pieces: scores, costs, and how they were trained."""

# ruff: noqa: RUF001 - the typographic signs are meant

from __future__ import annotations

import math
from typing import Any

from tangram.blocks.base import PARENT
from tangram.report import figures, tiles
from tangram.report.data import BEST, KINDS, Results
from tangram.report.document import Cell, Figure, Section, Table
from tangram.report.sections.speed import workloads_of
from tangram.report.style import ink_on

KIND_NAMES = {"attention": "attention", "ffn": "FFN", "model": "embedding, final norm, LM head"}


def scores_section(results: Results) -> Section:
    """Return the section `scores`."""
    section = Section(
        "scores",
        "What each piece costs in quality",
        "The parent with one subblock replaced: KL from the intact parent. Dots mark the pieces of the chosen child.",
    )
    frame = results.scores[results.scores["metric"] == "kl"]
    if len(frame):
        variants = {kind: results.variants(kind) for kind in KINDS}
        chosen = results.architectures.get((results.settings.primary_target, BEST), ())
        layers = max(results.settings.num_layers, int(frame["layer"].max()) + 1)
        drawn = tiles.score_map(frame, variants, layers, chosen)
        section.parts.append(Figure(drawn, "Columns are layers; dark is expensive. Point at a tile for its numbers."))
    return section


def costs_section(results: Results) -> Section:
    """Return the section `costs`."""
    section = Section(
        "costs",
        "What each piece costs in time",
        "Seconds relative to the parent’s own subblock, timed in turns with it; memory as it is.",
    )
    frame = results.costs
    if not len(frame):
        return section
    classes = frame["layer_class"].nunique() > 1
    workloads = workloads_of(frame)
    rows: list[list[Cell | str]] = []
    order = {kind: i for i, kind in enumerate(("attention", "ffn", "model"))}
    names = {kind: [PARENT, *results.variants(kind)] for kind in KINDS} | {"model": [PARENT]}
    groups = [
        (layer_class, kind, variant)
        for layer_class in sorted(set(frame["layer_class"]))
        for kind in sorted(set(frame["kind"]), key=lambda kind: order.get(kind, 9))
        for variant in names.get(kind, [])
    ]
    for layer_class, kind, variant in groups:
        picked = (frame["layer_class"] == layer_class) & (frame["kind"] == kind) & (frame["variant"] == variant)
        part = frame[picked]
        if not len(part):
            continue
        label = f"{KIND_NAMES[kind]}{' ' + variant if kind != 'model' else ''}"
        row: list[Cell | str] = [f"{label}, as layer {layer_class}" if classes and kind != "model" else label]
        for scenario, batch, phase in workloads:
            cell = part[(part["scenario"] == scenario) & (part["batch"] == batch) & (part["phase"] == phase)]
            row.append(_cost_cell(cell.iloc[0]) if len(cell) else "–")
        row += [f"{part['parameter_bytes'].iloc[0] / 1e6:,.2f}", f"{part['kv_bytes_per_token'].iloc[0]:,}"]
        rows.append(row)
    heads = [f"{scenario}, batch {batch}: {phase}" for scenario, batch, phase in workloads]
    section.parts.append(
        Table(
            ["piece", *heads, "weights, MB", "KV, bytes/token"],
            rows,
            caption="Relative time, then milliseconds of the median. Prefill is the whole prompt, decode one step.",
        )
    )
    return section


def _cost_cell(row: Any) -> Cell:
    share = row["seconds"] / row["parent_seconds"] if row["parent_seconds"] > 0 else math.nan
    milliseconds = f"{1e3 * row['seconds']:,.2f} ms"
    if math.isnan(share) or row["kind"] == "model":
        return Cell(milliseconds)
    background = tiles.ramp(0.55 * share)
    return Cell(f"{share:.2f}  ·  {milliseconds}", "heat", background, ink_on(background))


def training_section(results: Results, colors: dict[str, str]) -> Section:
    """Return the section `training`."""
    section = Section(
        "training",
        "Training",
        "Blocks first learn alone to imitate the parent’s (BLD); the assembled child then learns as a whole (GKD).",
    )
    drawn = [
        (
            figures.bld_losses(results, colors),
            "Blocks: held-out loss by layer",
            "Ring: initial weights; dot: after training, kept; cross: training made it worse, so the initial weights "
            "were kept.",
        ),
        (
            figures.bld_curves(results, colors),
            "Blocks: training curves",
            "Running medians of the training losses: their median over layers, and a band with the middle 80 %.",
        ),
        (
            figures.gkd_curves(results),
            "Children: finetuning curves",
            "Running mean of the training losses; bold is the chosen child, dashed are layers dropped.",
        ),
    ]
    section.parts.extend(Figure(svg, caption, title) for svg, title, caption in drawn if svg)
    return section
