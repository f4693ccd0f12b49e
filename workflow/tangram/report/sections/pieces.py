"""Sections on the pieces: scores, costs and training."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

import math
from typing import Any

from tangram.blocks.base import HEAD, KINDS, PARENT
from tangram.report import figures, tiles
from tangram.report.data import BEST, Results
from tangram.report.document import Cell, Figure, Section, Table
from tangram.report.sections.speed import workloads_of
from tangram.report.style import ink_on

KIND_NAMES = {"attention": "attention", "ffn": "FFN", "head": "LM head", "model": "embedding, final norm"}


def scores_section(results: Results) -> Section:
    """Return the section `scores`."""
    section = Section(
        "scores",
        "Loss of quality by piece",
        "KL of the parent with one replaced subblock from the parent. Dots mark the pieces of the chosen child.",
    )
    frame = results.scores[results.scores["metric"] == "kl"]
    if len(frame):
        variants: dict[str, list[str]] = {kind: results.variants(kind) for kind in KINDS}
        chosen = results.architectures.get((results.settings.primary_target, BEST))
        layers = max(results.settings.num_layers, int(frame["layer"].max()) + 1)
        drawn = tiles.score_map(frame, variants, layers, chosen)
        section.parts.append(
            Figure(drawn, "Columns are layers; dark is a large loss. Point at a tile for its numbers.")
        )
    return section


def costs_section(results: Results) -> Section:
    """Return the section `costs`."""
    section = Section(
        "costs",
        "Time and memory by piece",
        "Time relative to the parent’s subblock, timed round-robin with it; memory in absolute units.",
    )
    frame = results.costs
    if not len(frame):
        return section
    classes = frame["layer_class"].nunique() > 1
    workloads = workloads_of(frame)
    rows: list[list[Cell | str]] = []
    order = {kind: i for i, kind in enumerate(KIND_NAMES)}
    names = {kind: [PARENT, *results.variants(kind)] for kind in (*KINDS, HEAD)} | {"model": [PARENT]}
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
            caption="Relative time, and the median in milliseconds. Prefill is the whole prompt, decode one step.",
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
        "Block distillation (BLD) trains each piece separately; global distillation (GKD) finetunes the whole child.",
    )
    drawn = [
        (
            figures.bld_losses(results, colors),
            "Blocks: held-out loss by layer",
            "Ring: initial weights; dot: trained weights, kept; cross: trained weights with a larger loss, so the "
            "initial weights were kept.",
        ),
        (
            figures.bld_curves(results, colors),
            "Blocks: training curves",
            "Running medians of the training losses: the median over layers, with a band of the middle 80 %.",
        ),
        (
            figures.gkd_curves(results),
            "Children: finetuning curves",
            "Running means of the training losses; bold: the chosen child; dashed: layers dropped.",
        ),
    ]
    section.parts.extend(Figure(svg, caption, title) for svg, title, caption in drawn if svg)
    return section
