"""Sections on the pieces: scores, costs and training."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from tangram.blocks.architecture import LayerChoice, pieces_of
from tangram.blocks.base import HEAD, KINDS, PAIR, PARENT, Variant
from tangram.report import figures, tiles
from tangram.report.data import BEST, Results, rows_of
from tangram.report.document import Cell, Figure, Note, Part, Section, Table
from tangram.report.learning_curve import forecast
from tangram.report.names import KIND_NAMES
from tangram.report.noise import cost_changes, noisy_costs
from tangram.report.sections.speed import workloads_of
from tangram.report.style import ink_on, number, percent
from tangram.search.objective import SCREENED


def scores_section(results: Results, colors: dict[str, str]) -> Section:
    """Return the section `scores`."""
    section = Section(
        "scores",
        "Loss of quality by piece",
        "KL of the parent with one replaced subblock from the parent. Dots mark the pieces of the chosen child.",
    )
    frame = results.scores[results.scores["metric"] == "kl"]
    if len(frame):
        scored = set(zip(frame["kind"], frame["variant"], strict=True))
        variants: dict[str, list[str]] = {
            kind: [variant for variant in results.variants(kind) if (kind, variant) in scored]
            for kind in (*KINDS, HEAD)
        }
        chosen = results.architectures.get((results.settings.primary_target, BEST))
        layers = max(results.settings.num_layers, int(frame["layer"].max()) + 1)
        drawn = tiles.score_map(frame, variants, layers, chosen, colors)
        section.parts.append(
            Figure(
                drawn,
                "Columns are layers, except for the LM head. Dark is a large loss. Point at a tile for its numbers."
                + " Only the pieces that solutions choose have exact scores, others estimates of second order."
                * (SCREENED in set(results.scores["metric"])),
            )
        )
    return section


def costs_section(results: Results, colors: dict[str, str]) -> Section:
    """Return the section `costs`."""
    lead = (
        "Time relative to the parent’s subblock, timed round-robin with it; memory in absolute units. All pieces are "
        "timed with packed kernels, the parent’s too."
    )
    section = Section("costs", "Time and memory by piece", f"{lead} {_stock_sentence(results)}".strip())
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
        label = f"{label}, as layer {layer_class}" if classes and kind != "model" else label
        row: list[Cell | str] = [Cell(label, swatch="" if kind == "model" else tiles.swatch(variant, colors))]
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
    section.parts.extend(_noise_table(results))
    section.parts.extend(_change_table(results))
    return section


def _stock_sentence(results: Results) -> str:
    """Return a sentence with the stock parent's seconds over the packed parent's; empty without a measurement."""
    from tangram.costs.calibration import stock_factors

    factors = stock_factors(results.calibration)
    shown = [
        f"{factors[scenario, phase, batch]:.2f} ({scenario}, {phase}, batch {batch})"
        for scenario, batch, phase in workloads_of(results.calibration)
        if (scenario, phase, batch) in factors
    ]
    if not shown:
        return ""
    return (
        "The calibration’s row “stock parent” gives the factor between both ways to run the whole parent: in stock "
        f"transformers it takes the packed parent’s time × {', '.join(shown)}."
    )


def _noise_table(results: Results) -> list[Part]:
    """Return the variants whose cost is uncertain, with the targets that chose them."""
    rows = [
        [
            f"{KIND_NAMES[cost.kind]} {cost.variant}",
            f"{cost.scenario}, batch {cost.batch}: {cost.phase}",
            f"{cost.ratio:.3f} ± {cost.half_width:.3f}",
            ", ".join(f"{count} in {target}" for target, count in cost.chosen.items()) or "–",
        ]
        for cost in noisy_costs(results)
    ]
    if not rows:
        return [Note("The 95 % interval of every piece’s relative time is within ± 2 % of the parent’s piece.")]
    caption = "Variants whose 95 % interval exceeds ± 2 % of the parent’s piece, and the subblocks that use them."
    heads = ["piece", "workload", "relative time", "subblocks of solution 0"]
    return [Table(heads, rows, labels=2, title="Uncertain costs", caption=caption)]


def _change_table(results: Results) -> list[Part]:
    """Return the choices that another cost within its interval would change."""
    found = cost_changes(results)
    if found is None:
        return []
    if not found:
        return [Note("No cost within its 95 % interval changes a choice of solution 0 of any target.")]
    rows = [
        [
            change.target,
            f"{KIND_NAMES[change.kind]} {change.variant}",
            change.end,
            "no architecture satisfies the limits" if change.changes is None else _swaps(change.changes),
        ]
        for change in found
    ]
    caption = (
        "The solver’s answers with one variant’s relative time at an end of its 95 % interval, all others as measured: "
        "subblocks of solution 0 that change. Costs that are not named change nothing."
    )
    heads = ["target", "piece", "its time", "changed subblocks"]
    title = "Choices that another cost would change"
    return [Table(heads, rows, labels=4, title=title, caption=caption, folded=True)]


def _swaps(changes: dict[str, int]) -> str:
    return "; ".join(f"{count} × {swap}" for swap, count in changes.items())


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
        "Block distillation (BLD) trains each piece separately, and coupled pairs together; global distillation (GKD) "
        "finetunes the whole child.",
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
        (
            figures.learning_curves(results),
            "Children: learning curves",
            "KL on the first sequences of the score split, which are not trained on, before matrices of 8 bits are "
            f"rounded again; bold: the chosen child; dashed: layers dropped. {_forecast_sentence(results)}",
        ),
    ]
    section.parts.extend(Figure(svg, caption, title) for svg, title, caption in drawn if svg)
    section.parts.extend(_coupled_table(results))
    section.parts.extend(_quantized_table(results, colors))
    return section


def _coupled_table(results: Results) -> list[Part]:
    """Return the held-out losses and the scores of all coupled pairs, beside those of their pieces; empty without one.

    A child has the pair in layers of which the number is in the last column.
    """
    frame = results.library[results.library["kind"] == PAIR]
    scores = results.scores[results.scores["metric"] == "kl"]
    kl = {(row.layer, row.kind, row.variant): row.value for row in rows_of(scores)}
    chosen = results.architectures.get((results.settings.primary_target, BEST))
    layers = [choice.pair for choice in chosen.layers if choice.coupled] if chosen else []
    rows: list[list[Cell | str]] = []
    for pair, part in frame.groupby("variant"):
        choice = LayerChoice.parse(str(pair))
        ratios = [
            kl[layer, PAIR, pair] / total
            for layer in part["layer"]
            if (layer, PAIR, pair) in kl
            and (total := sum(kl.get((layer, *piece), math.nan) for piece in pieces_of(choice))) > 0
        ]
        after = part["bld_loss_after"].fillna(part["bld_loss_before"])
        rows.append(
            [
                str(pair),
                number(float(part["bld_loss_before"].median())),
                number(float(after.where(part["kept"] == "trained", part["bld_loss_before"]).median())),
                number(float(pd.Series(ratios, dtype=float).median())),
                str(layers.count(str(pair))),
            ]
        )
    if not rows:
        return []
    caption = (
        "Held-out normalized MSE of the layer’s output before the variants are trained together and after it, and the "
        "KL of the pair as a share of the sum of its pieces’ KLs, as medians over layers; layers of solution 0 of the "
        "primary target that have the pair."
    )
    heads = ["pair", "before", "together", "KL / sum of KLs", "layers"]
    return [Table(heads, rows, labels=1, title="Blocks: coupled pairs", caption=caption)]


def _forecast_sentence(results: Results) -> str:
    """Return what more tokens would bring the chosen child, or why the curve does not say it."""
    tokens, kl = figures.validation_points(results).get((results.settings.primary_target, BEST), ([], []))
    found = forecast(tokens, kl)
    if found is None:
        return f"{len(kl)} points carry no power law; with a longer finetune.budget there are more."
    law = "A power law of the chosen child’s points"
    if not found.predicts:
        return f"{law} has no predictive power: without the last point, it misses that by more than no change does."
    interval = f"{number(found.then)} [{number(found.low)} to {number(found.high)}]"
    if found.high >= found.now:
        return f"{law} does not show that ten times the tokens would lower its KL of {number(found.now)}: {interval}."
    return f"{law} says that ten times the tokens would bring its KL from {number(found.now)} to {interval}."


def _quantized_table(results: Results, colors: dict[str, str]) -> list[Part]:
    """Return the held-out losses of all quantized pieces by variant; empty without one."""
    rows: list[list[Cell | str]] = []
    for kind in (*KINDS, HEAD):
        for variant in results.variants(kind):
            frame = results.library
            part = frame[(frame["kind"] == kind) & (frame["variant"] == variant)].dropna(subset="bld_loss_after")
            if Variant.parse(variant).precision is None or not len(part):
                continue
            worst = part.nlargest(1, "bld_loss_after").iloc[0]
            layer = "" if kind == HEAD else f" in layer {worst['layer']}"
            roundings = part["kept"].value_counts(sort=True).sort_index(kind="stable")
            rows.append(
                [
                    Cell(f"{KIND_NAMES[kind]} {variant}", swatch=tiles.swatch(variant, colors)),
                    "KL, nats/token" if kind == HEAD else "normalized MSE",
                    number(float(part["bld_loss_before"].median())),
                    number(float(part["bld_loss_after"].median())),
                    f"{number(float(worst['bld_loss_after']))}{layer}",
                    ", ".join(f"{rounding} ({percent(n / len(part), places=0)})" for rounding, n in roundings.items()),
                ]
            )
    if not rows:
        return []
    caption = (
        "Held-out loss of the piece in the run’s dtype, from which a quantized piece is made, and of the quantized "
        "piece. The rounding with the smallest held-out loss is kept."
    )
    heads = ["piece", "loss", "before, median over layers", "quantized, median", "quantized, largest", "rounding"]
    return [Table(heads, rows, labels=2, title="Blocks: quantization", caption=caption)]
