"""The page: what is said, in which order, from one run's tables."""

# ruff: noqa: RUF001 - the typographic signs are meant

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from tangram.blocks.base import NO_OP, PARENT
from tangram.report import tiles
from tangram.report.comparison import compare
from tangram.report.data import BEST, KINDS, PARENT_KEY, Results, rows_of
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
    """Return the report: one HTML page without scripts or anything from outside it."""
    variants = [variant for kind in KINDS for variant in results.variants(kind)]
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
    foretold = predicted(results, chosen.target, chosen.solution, "speedup")
    if speed:
        said = f"; predicted {foretold:.3f}" if foretold else ""
        facts.append(Fact(f"{speed.value:.2f}", "×", "the parent’s speed", f"measured {estimate(speed)}{said}"))
    divergence = results.heldout(chosen, "kl")
    if divergence:
        before = results.heldout(chosen._replace(model="child"), "kl")
        was = f"; before finetuning {estimate(before)}" if before and chosen.model != "child" else ""
        facts.append(Fact(number(divergence.value), "nats", "KL from the parent", f"{estimate(divergence)}{was}"))
    perplexity, parents = results.heldout(chosen, "perplexity"), results.heldout(PARENT_KEY, "perplexity")
    if perplexity:
        beside = f"; parent {estimate(parents)}" if parents else ""
        facts.append(Fact(number(perplexity.value), "", "perplexity", f"{estimate(perplexity)}{beside}"))
    agreement = results.heldout(chosen, "agreement")
    if agreement:
        share = agreement.times(100)
        facts.append(
            Fact(f"{share.value:.1f}", "%", "same next token", f"as the parent’s first choice: {estimate(share)}")
        )
    accuracy = results.estimate(chosen, "mean", "acc_above_chance")
    if accuracy:
        share = accuracy.times(100)
        parents = results.estimate(PARENT_KEY, "mean", "acc_above_chance")
        paired = results.estimate(chosen, "mean", "acc_above_chance_difference")
        beside = f"; parent {estimate(parents.times(100))}" if parents else ""
        beside += f"; paired difference {estimate(paired.times(100), signed=True)}" if paired else ""
        facts.append(Fact(f"{share.value:.1f}", "%", "tasks, above chance", f"{estimate(share)}{beside}"))
    return [replace(fact, detail=fact.detail.replace(" ± ", "\u00a0±\u00a0")) for fact in facts]


def _sentence(results: Results) -> str:
    chosen = results.chosen
    architecture = results.architectures.get((results.settings.primary_target, BEST))
    said = []
    if architecture:
        kept = sum(getattr(choice, kind) == PARENT for choice in architecture for kind in KINDS)
        said.append(f"{kept} of {2 * len(architecture)} subblocks are the parent’s own.")
        for kind, name in (("attention", "Attention"), ("ffn", "FFN")):
            counts = Counter(getattr(choice, kind) for choice in architecture)
            changed = [f"{counts[v]} {'removed' if v == NO_OP else v}" for v in results.variants(kind) if counts[v]]
            if changed:
                said.append(f"{name}: {', '.join(changed)}.")
    if chosen:
        found = [c for c in compare(results, "kl", chosen.model) if c.key == chosen]
        if found and found[0].baseline:
            other = estimate(found[0].baseline)
            slower = found[0].slower
            stand = "stand at" if slower else "would stand at"
            where = f"only {slower.value:.2f} ×" if slower else "the same measured speed"
            outcome = {
                "child": "this child is closer to the parent",
                "baseline": "they are closer to the parent",
                "tie": "a tie within the errors",
                "": "no verdict",
            }
            said.append(f"Whole layers dropped instead {stand} KL {other} at {where}: {outcome[found[0].verdict]}.")
    return " ".join(said)


def _relative_costs(results: Results) -> dict[tuple[str, str], float]:
    """Return each variant's seconds over the parent's own subblock's, mean over phases, in the default scenario."""
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
