"""The section on the frontier: the chosen child and its rivals, and all children beside each rival."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

import math

from tangram.blocks import Variant
from tangram.config import LAYERS_DROPPED
from tangram.report import frontier
from tangram.report.comparison import (
    RIVAL_VERDICTS,
    VERDICTS,
    Comparison,
    Meeting,
    beside_uniform,
    compare,
    quality_kept,
)
from tangram.report.data import PACKED_SPEEDUP, SPEEDUP, Results
from tangram.report.document import Cell, Figure, Note, Section, Table
from tangram.report.estimates import PACKED_KEY, PARENT_KEY, Estimate, Key
from tangram.report.names import short_name, solution_name
from tangram.report.prediction import predicted_packed_parent, predicted_speedup
from tangram.report.sections.speed import compared
from tangram.report.style import estimate, percent_of

STAGES = (("finetuned", "after finetuning"), ("child", "before finetuning"))


def frontier_section(results: Results) -> Section:
    """Return the section `frontier`."""
    section = Section(
        "frontier",
        "The frontier: quality against measured speed",
        "The best child of every target, and the rivals that a user would build instead: the parent with whole layers "
        "dropped for the same speed, and the parent in one precision, finetuned on the same tokens. Lower is better; "
        "speeds are measured end to end, round-robin with the parent.",
    )
    drawn = frontier.frontier(results)
    if not drawn:
        section.parts.append(Note("No child has been evaluated yet."))
        return section
    scenario = results.settings.default_scenario
    section.parts.append(
        Figure(drawn, f"Held-out text; scenario “{scenario}”. Bars: one standard error. Open marks: before finetuning.")
    )
    section.parts.append(_rivals_table(results))
    tables = [table for model, stage in STAGES if (table := _uniform_table(results, model, stage))]
    tables += [table for model, stage in STAGES if (table := _dropped_table(results, model, stage))]
    section.parts.extend(tables)
    if not any(solution == LAYERS_DROPPED for _, solution in results.children):
        section.parts.append(Note("This run builds no layers-dropped baseline (compare_layers_dropped)."))
    if source := dequantized(results):
        section.parts.append(Note(source))
    return section


def dequantized(results: Results) -> str | None:
    """Return a sentence on int8 pieces of a parent from a quantized GGUF; None without both."""
    source = results.parent.get("source", {})
    named = [str(source.get(name, "")) for name in ("member", "path", "repo", "file")]
    variants = {variant for kind in ("attention", "ffn", "head") for variant in results.variants(kind)}
    weights = str(results.parent.get("weights", ""))
    if not any(name.endswith(".gguf") for name in named) or not weights.startswith("dequantized"):
        return None
    if not any(Variant.parse(variant).precision == "int8" for variant in variants):
        return None
    return (
        f"The parent’s weights are {weights}: they lie on a coarse grid, so int8 weights change this parent less than "
        "one with trained weights of full precision."
    )


def _rivals_table(results: Results) -> Table:
    """Return speed and quality of the parents, the primary target's best child and its rivals."""
    target = results.settings.primary_target
    keys = [PARENT_KEY, *([PACKED_KEY] if results.speedup(PACKED_KEY) else [])]
    keys += [k for t, solution in results.children if t == target and (k := results.final(t, solution))]
    rows: list[list[Cell | str]] = []
    for key in keys:
        quality = [estimate(results.heldout(key, metric)) for metric in ("kl", "perplexity", "agreement")]
        name = key.model if key in (PARENT_KEY, PACKED_KEY) else short_name(results, key.target, key.solution)
        if results.chosen and key.target and key.model != results.chosen.model:
            name += ", before finetuning"
        kept = quality_kept(results, PARENT_KEY if key == PACKED_KEY else key)
        speeds = [*_speeds(results, key, SPEEDUP), *_speeds(results, key, PACKED_SPEEDUP)]
        share = ("100" if kept else "–") if key in (PARENT_KEY, PACKED_KEY) else percent_of(kept)
        rows.append([Cell(name, "total") if key == results.chosen else name, *speeds, *quality, share])
    heads = ["over stock, predicted", "measured", "over packed, predicted", "measured"]
    stage = dict(STAGES)[results.chosen.model] if results.chosen else ""
    return Table(
        ["model", *heads, "KL, nats/token", "perplexity", "agreement", "quality kept, %"],
        rows,
        title=f"The chosen child and its rivals {stage}".strip(),
        caption="The stock parent runs in stock transformers. The packed parent has the same weights and the kernels "
        "of the children: it is the parent as well run as it can be, over which a claim is made. Quality kept: mean "
        "normalized accuracy on tasks as a share of the parent’s, paired by question. ± is one standard error.",
    )


def _speeds(results: Results, key: Key, metric: str) -> list[str]:
    """Return predicted and measured speed-up."""
    if key == (PARENT_KEY if metric == SPEEDUP else PACKED_KEY):
        return ["1", "1"]
    if key == PACKED_KEY:
        prediction = predicted_packed_parent(results, results.settings.primary_target)
    else:
        prediction = predicted_speedup(results, key.target, key.solution, metric)
    return compared(prediction, results.speedup(key, metric))[:2]


def _uniform_table(results: Results, model: str, stage: str) -> Table | None:
    """Return every uniform rival beside the searched children; None without both."""

    def cells(meeting: Meeting, unit: str, place: str) -> list[Cell | str]:
        nearest = f", at {place} {meeting.nearest.value:.3g}" if meeting.nearest else ""
        look = "rival" if meeting.verdict == "baseline" else meeting.verdict
        verdict = Cell(RIVAL_VERDICTS[meeting.verdict], f"verdict {look}")
        return [f"{estimate(meeting.children)}{unit}{nearest}", verdict]

    def better(key: Key | None) -> str:
        return solution_name(results, key.target, key.solution) if key else "–"

    rows = [
        [
            solution_name(results, *rivalry.key[:2]),
            f"{estimate(rivalry.speed)} ×",
            estimate(rivalry.kl),
            *cells(rivalry.at_speed, "", "speed"),
            *cells(rivalry.at_kl, " ×", "KL"),
            better(rivalry.better),
            better(rivalry.as_fast),
        ]
        for rivalry in beside_uniform(results, model)
    ]
    if not rows:
        return None
    reference = results.best_parent.model
    heads = ["KL", "KL, Tangram at this speed", "closer", "speed, Tangram at this KL", "faster", "faster and closer"]
    heads.append("as fast and closer")
    return Table(
        ["rival", f"speed over the {reference}", *heads],
        rows,
        title=f"Beside uniform precision, {stage}",
        caption="The last columns name a child that is both faster and closer, each by more than 1.96 standard errors, "
        "and one that is closer, by prediction at least as fast, and measured as fast within the errors. "
        "A rival with the first has lost. Otherwise Tangram is an interpolation between the "
        f"{reference} and the best children of all targets, linear in speed and in the logarithm of "
        "KL (from KL 0: in KL). Nothing is extrapolated: "
        "beyond them, the nearest one is shown with its place, and only who is better in both speed and KL wins. Less "
        "than 1.96 standard errors apart is a tie; differences of KL are paired by sequence, and of interpolated KLs "
        "that of logarithms counts.",
    )


def _dropped_table(results: Results, model: str, stage: str) -> Table | None:
    """Return every child beside layers dropped for the same speed; None without a child."""
    losses = {c.key: c for c in compare(results, "lm_loss", model)}
    rows = []
    for comparison in compare(results, "kl", model):
        loss = losses.get(comparison.key)
        rows.append(
            [
                comparison.key.target,
                f"{estimate(comparison.speed)} ×",
                *_comparison_cells(comparison, False),
                *(_comparison_cells(loss, True) if loss else ["–"] * 3),
            ]
        )
    if not rows:
        return None
    reference = results.best_parent.model
    heads = [
        "KL, Tangram",
        "KL, layers dropped",
        "closer",
        "perplexity, Tangram",
        "perplexity, layers dropped",
        "lower",
    ]
    return Table(
        ["target", f"speed over the {reference}", *heads],
        rows,
        title=f"Beside layers dropped, at the child’s speed, {stage}",
        caption="Layers dropped: interpolation (of log KL and log perplexity; from KL 0, of KL) at the child’s "
        f"measured speed, with the {reference} as first point. Nothing is extrapolated: a child faster than every "
        "baseline is compared with the fastest one at its lower speed, and only the child can win. Less than 1.96 "
        "standard errors apart is a tie.",
    )


def _comparison_cells(comparison: Comparison, exponential: bool) -> list[Cell | str]:
    def shown(loss: Estimate | None) -> str:
        if loss is None:
            return "–"
        if not exponential:
            return estimate(loss)
        value = math.exp(loss.value)
        return estimate(Estimate(value, value * (loss.standard_error or 0)))

    slower = f", at {comparison.slower.value:.3f} ×" if comparison.slower else ""
    verdict = Cell(VERDICTS[comparison.verdict], f"verdict {comparison.verdict}")
    return [shown(comparison.child), f"{shown(comparison.baseline)}{slower}", verdict]
