"""The page of a run: title, key numbers and sections, from one run's tables."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from tangram.blocks.architecture import pieces_of
from tangram.blocks.base import HEAD, KINDS, NO_OP, PAIR, PARENT
from tangram.report import tiles
from tangram.report.comparison import Meeting, Rivalry, beside_uniform, compare, quality_kept
from tangram.report.data import BEST, PACKED_SPEEDUP, SPEEDUP, Results, rows_of, strength
from tangram.report.document import Fact, Section, render_document
from tangram.report.engine_files import REFERENCE_NAMES, EngineFile, engine_files
from tangram.report.estimates import PACKED_KEY, PARENT_KEY, Key
from tangram.report.names import parent_name, solution_name
from tangram.report.prediction import predicted_speedup
from tangram.report.sections.engine import engine_section
from tangram.report.sections.frontier import frontier_section
from tangram.report.sections.long_texts import long_context_section
from tangram.report.sections.origin import origin_section, time_section
from tangram.report.sections.perplexities import perplexity_section
from tangram.report.sections.pieces import costs_section, scores_section, training_section
from tangram.report.sections.quality import measurements_section, readout_section, tasks_section
from tangram.report.sections.search import architectures_section, solver_section
from tangram.report.sections.speed import speed_section
from tangram.report.sections.trials import trials_section
from tangram.report.style import estimate, number, percent_interval, percent_of, variant_colors


def render_page(results: Results) -> str:
    """Return the report: one self-contained HTML page without scripts."""
    kinds = (*KINDS, HEAD)
    colors = variant_colors([variant for kind in kinds for variant in results.variants(kind)])
    searched = [variant for kind in kinds for variant in results.variants(kind, searched=True)]
    key = tiles.legend(sorted(searched, key=strength), colors)
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
        perplexity_section(results),
        long_context_section(results),
        readout_section(results),
        speed_section(results),
        engine_section(results),
        solver_section(results),
        scores_section(results, colors),
        costs_section(results, colors),
        training_section(results, colors),
        trials_section(results),
        measurements_section(results),
        time_section(results),
        origin_section(results),
    ]
    return sections


def _own_file(results: Results) -> EngineFile | None:
    """Return the primary target's child as its engine runs it; None if that is torch, or nothing is measured there."""
    target = results.settings.primary_target
    if target not in results.settings.engines:
        return None
    name = solution_name(results, target, BEST)
    return next((file for file in engine_files(results) if file.name == name and file.speedup), None)


def _title(results: Results) -> str:
    chosen, own = results.chosen, _own_file(results)
    if own and own.speedup:
        reference = REFERENCE_NAMES[own.engine]
        return f"{parent_name(results)}, {own.speedup.value:.2f} × as fast as the {reference} in {own.engine}"
    speed = results.speedup(chosen) if chosen else None
    if speed is None:
        return f"{parent_name(results)}: no child measured yet"
    packed = results.speedup(chosen, PACKED_SPEEDUP) if chosen and results.best_parent == PACKED_KEY else None
    beside = f" ({packed.value:.2f} × the packed parent)" if packed else ""
    return f"{parent_name(results)}, {speed.value:.2f} × as fast{beside}"


def _facts(results: Results) -> list[Fact]:
    chosen = results.chosen
    if chosen is None:
        return []
    facts, own = [], _own_file(results)
    if own and own.speedup:
        detail = f"measured {estimate(own.speedup)}" + (f"; predicted {own.predicted:.3f}" if own.predicted else "")
        over_parent = f"over the {REFERENCE_NAMES[own.engine]} in {own.engine}"
        facts.append(Fact(f"{own.speedup.value:.2f}", "×", over_parent, detail))
    over = [(SPEEDUP, "over the stock parent"), (PACKED_SPEEDUP, "over the packed parent")]
    for metric, label in [] if own else over[: 1 + (results.best_parent == PACKED_KEY)]:
        speed = results.speedup(chosen, metric)
        prediction = predicted_speedup(results, chosen.target, chosen.solution, metric)
        if speed:
            detail = f"measured {estimate(speed)}" + (f"; predicted {prediction:.3f}" if prediction else "")
            facts.append(Fact(f"{speed.value:.2f}", "×", label, detail))
    divergence = results.heldout(chosen, "kl")
    if divergence:
        before = results.heldout(chosen._replace(model="child"), "kl")
        detail = estimate(divergence)
        detail += f"; before finetuning {estimate(before)}" if before and chosen.model != "child" else ""
        digits = 3 if divergence.value >= 0.1 else 2
        facts.append(Fact(number(divergence.value, digits), "", "KL from the parent, nats/token", detail))
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
    facts += _accuracy_facts(results, chosen)
    return [replace(fact, detail=fact.detail.replace(" ± ", "\u00a0±\u00a0")) for fact in facts]


def _accuracy_facts(results: Results, chosen: Key) -> list[Fact]:
    """Return the share of the parent's accuracy above chance that the child keeps; empty without tasks."""
    accuracy, kept = results.estimate(chosen, "mean", "acc_above_chance"), quality_kept(results, chosen)
    if accuracy is None:
        return []
    share = accuracy.times(100)
    reference = results.estimate(PARENT_KEY, "mean", "acc_above_chance")
    paired = results.estimate(chosen, "mean", "acc_above_chance_difference")
    detail = estimate(share) + (f"; parent {estimate(reference.times(100))}" if reference else "")
    detail += f"; paired difference {estimate(paired.times(100), signed=True)}" if paired else ""
    if kept is None:
        return [Fact(f"{share.value:.1f}", "%", "tasks, above chance", detail)]
    interval = f"{percent_of(kept)}, 95 % interval {percent_interval(kept)}"
    return [Fact(f"{100 * kept.value:.1f}", "%", "quality kept", f"{interval}; tasks above chance: {detail}")]


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
        if architecture.head != PARENT:
            sentences.append(f"LM head: {architecture.head}.")
    if chosen and not _own_file(results):  # the rivals' speeds are those of torch
        sentences += [*_parent_verdict(results, chosen), *_dropped_verdict(results, chosen)]
        sentences += _uniform_verdicts(results, chosen.model)
    return " ".join(sentences)


def _parent_verdict(results: Results, chosen: Key) -> list[str]:
    speed = results.claimed_speedup(chosen)
    slower = speed is not None and speed.value < 1
    return [f"The {results.best_parent.model} is as fast or faster: this child saves no time."] if slower else []


def _dropped_verdict(results: Results, chosen: Key) -> list[str]:
    """Return the sentence on layers dropped at the chosen child's speed; empty without a baseline."""
    comparison = next((c for c in compare(results, "kl", chosen.model) if c.key == chosen), None)
    if comparison is None or comparison.baseline is None:
        return []
    slower = comparison.slower
    verb = "has" if slower else "would have"
    reference = f"{slower.value:.2f} × the {results.best_parent.model}" if slower else ""
    speed = f"only {reference}’s speed" if slower else "the same measured speed"
    outcome = {
        "child": "this child is closer to the parent",
        "baseline": "the baseline is closer to the parent",
        "tie": "a tie within the errors",
        "": "no verdict",
    }[comparison.verdict]
    baseline = estimate(comparison.baseline)
    return [f"The baseline of dropped layers {verb} KL {baseline} at {speed}: {outcome}."]


def _uniform_verdicts(results: Results, model: str) -> list[str]:
    """Return a sentence for every rival of uniform precision: who is better at its speed, and at its KL."""

    def outcome(meeting: Meeting, better: str) -> str:
        return {
            "child": f"the searched children are {better}",
            "baseline": f"the rival is {better}",
            "tie": "a tie within the errors",
            "": "no verdict, as no child is there",
        }[meeting.verdict]

    def verdict(rivalry: Rivalry) -> str:
        if rivalry.better:
            return f"{solution_name(results, *rivalry.better[:2])} is faster and closer"
        if rivalry.as_fast:
            name, kl = solution_name(results, *rivalry.as_fast[:2]), results.heldout(rivalry.as_fast, "kl")
            return (
                f"{name} is as fast within the errors, by prediction at least as fast, and closer (KL {estimate(kl)})"
            )
        closer, faster = outcome(rivalry.at_speed, "closer to the parent"), outcome(rivalry.at_kl, "faster")
        return f"at its speed, {closer}; at its KL, {faster}"

    return [
        f"Beside the {solution_name(results, *rivalry.key[:2])} (KL {estimate(rivalry.kl)} at "
        f"{rivalry.speed.value:.2f} × the {results.best_parent.model}): {verdict(rivalry)}."
        for rivalry in beside_uniform(results, model)
    ]


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
    for layer, choice in enumerate(architecture.layers):
        if choice.coupled:
            tip = (
                f" · trained together{tips.get((layer, PAIR, choice.pair), '').replace('KL alone', 'KL of the layer')}"
            )
            tips |= {(layer, kind, variant): tip for kind, variant in pieces_of(choice)}
    return tiles.skyline(architecture, colors, _relative_costs(results), tips)
