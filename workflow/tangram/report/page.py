"""The page of a run: title, key numbers and sections, from one run's tables."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from tangram.blocks.base import HEAD, KINDS, NO_OP, PARENT
from tangram.report import tiles
from tangram.report.comparison import compare
from tangram.report.data import BEST, PARENT_KEY, Results, rows_of
from tangram.report.document import Fact, Section, render_document
from tangram.report.names import parent_name
from tangram.report.prediction import predicted
from tangram.report.sections.origin import origin_section, time_section
from tangram.report.sections.pieces import costs_section, scores_section, training_section
from tangram.report.sections.quality import frontier_section, measurements_section, readout_section, tasks_section
from tangram.report.sections.search import architectures_section, solver_section
from tangram.report.sections.speed import speed_section
from tangram.report.style import estimate, number, variant_colors


def render_page(results: Results) -> str:
    """Return the report: one self-contained HTML page without scripts."""
    variants = [variant for kind in (*KINDS, HEAD) for variant in results.variants(kind)]
    colors = variant_colors(variants)
    key = [(name, tiles.swatch(name, colors)) for name in colors]
    return render_document(
        run=results.settings.run,
        weights=results.parent.get("weights", ""),
        title=_title(results),
        sentence=_sentence(results),
        facts=_facts(results),
        skyline=_skyline(results, colors),
        key=key,
        sections=_sections(results, colors),
    )


def _sections(results: Results, colors: dict[str, str]) -> list[Section]:
    sections = [
        frontier_section(results),
        architectures_section(results, colors),
        tasks_section(results),
        readout_section(results),
        speed_section(results),
        solver_section(results),
        scores_section(results),
        costs_section(results),
        training_section(results, colors),
        measurements_section(results),
        time_section(results),
        origin_section(results),
    ]
    return sections


def _title(results: Results) -> str:
    chosen = results.chosen
    speed = results.speedup(chosen) if chosen else None
    if speed is None:
        return f"{parent_name(results)}: no child measured yet"
    return f"{parent_name(results)}, {speed.value:.2f} × as fast"


def _facts(results: Results) -> list[Fact]:
    chosen = results.chosen
    if chosen is None:
        return []
    facts = []
    speed = results.speedup(chosen)
    prediction = predicted(results, chosen.target, chosen.solution, "speedup")
    if speed:
        detail = f"measured {estimate(speed)}" + (f"; predicted {prediction:.3f}" if prediction else "")
        facts.append(Fact(f"{speed.value:.2f}", "×", "the parent’s speed", detail))
    divergence = results.heldout(chosen, "kl")
    if divergence:
        before = results.heldout(chosen._replace(model="child"), "kl")
        detail = estimate(divergence)
        detail += f"; before finetuning {estimate(before)}" if before and chosen.model != "child" else ""
        facts.append(Fact(number(divergence.value), "nats", "KL from the parent", detail))
    perplexity, reference = results.heldout(chosen, "perplexity"), results.heldout(PARENT_KEY, "perplexity")
    if perplexity:
        detail = estimate(perplexity) + (f"; parent {estimate(reference)}" if reference else "")
        facts.append(Fact(number(perplexity.value), "", "perplexity", detail))
    agreement = results.heldout(chosen, "agreement")
    if agreement:
        share = agreement.times(100)
        facts.append(
            Fact(f"{share.value:.1f}", "%", "same next token", f"as the parent’s first choice: {estimate(share)}")
        )
    accuracy = results.estimate(chosen, "mean", "acc_above_chance")
    if accuracy:
        share = accuracy.times(100)
        reference = results.estimate(PARENT_KEY, "mean", "acc_above_chance")
        paired = results.estimate(chosen, "mean", "acc_above_chance_difference")
        detail = estimate(share) + (f"; parent {estimate(reference.times(100))}" if reference else "")
        detail += f"; paired difference {estimate(paired.times(100), signed=True)}" if paired else ""
        facts.append(Fact(f"{share.value:.1f}", "%", "tasks, above chance", detail))
    return [replace(fact, detail=fact.detail.replace(" ± ", "\u00a0±\u00a0")) for fact in facts]


def _sentence(results: Results) -> str:
    chosen = results.chosen
    architecture = results.architectures.get((results.settings.primary_target, BEST))
    sentences = []
    if architecture:
        unchanged = sum(getattr(choice, kind) == PARENT for choice in architecture.layers for kind in KINDS)
        sentences.append(f"{unchanged} of {2 * len(architecture.layers)} subblocks are the parent’s.")
        for kind, name in (("attention", "Attention"), ("ffn", "FFN")):
            counts = Counter(getattr(choice, kind) for choice in architecture.layers)
            changed = [f"{counts[v]} {'removed' if v == NO_OP else v}" for v in results.variants(kind) if counts[v]]
            if changed:
                sentences.append(f"{name}: {', '.join(changed)}.")
    if chosen:
        comparison = next((c for c in compare(results, "kl", chosen.model) if c.key == chosen), None)
        if comparison and comparison.baseline:
            slower = comparison.slower
            verb = "has" if slower else "would have"
            speed = f"only {slower.value:.2f} ×" if slower else "the same measured speed"
            outcome = {
                "child": "this child is closer to the parent",
                "baseline": "the baseline is closer to the parent",
                "tie": "a tie within the errors",
                "": "no verdict",
            }[comparison.verdict]
            baseline = estimate(comparison.baseline)
            sentences.append(f"The baseline of dropped layers {verb} KL {baseline} at {speed}: {outcome}.")
    return " ".join(sentences)


def _relative_costs(results: Results) -> dict[tuple[str, str], float]:
    """Return each variant's seconds relative to the parent's subblock, mean over phases, in the default scenario."""
    frame = results.costs[results.costs["scenario"] == results.settings.default_scenario]
    frame = frame.assign(share=frame["seconds"] / frame["parent_seconds"])
    means: dict[Any, float] = frame.groupby(["kind", "variant"])["share"].mean().to_dict()
    return means


def _skyline(results: Results, colors: dict[str, str]) -> str:
    architecture = results.architectures.get((results.settings.primary_target, BEST))
    if not architecture:
        return ""
    tips = {
        (row.layer, row.kind, row.variant): f" · KL alone {number(row.value)}"
        for row in rows_of(results.scores[results.scores["metric"] == "kl"])
    }
    return tiles.skyline(architecture, colors, _relative_costs(results), tips)
