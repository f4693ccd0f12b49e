"""The page: what is said, in which order, from one run's tables."""

# ruff: noqa: RUF001 - the typographic signs are meant

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from tangram.blocks.base import PARENT
from tangram.config import LAYERS_DROPPED
from tangram.report import figures, tiles
from tangram.report.comparison import VERDICTS, Comparison, compare, rank_correlation, scored_children
from tangram.report.data import BEST, HELDOUT, KINDS, PARENT_KEY, Estimate, Key, Results, rows_of
from tangram.report.document import Cell, Fact, Figure, Note, Part, Section, Table, render_document
from tangram.report.prediction import constraint_facts, model_label, predicted, summary_of
from tangram.report.style import estimate, ink_on, number, percent, seconds, variant_colours
from tangram.report.timing import stage_order, stage_seconds

KIND_NAMES = {"attention": "attention", "ffn": "FFN", "model": "embedding, final norm, LM head"}


def render_page(results: Results) -> str:
    """Return the report: one HTML page without scripts or anything from outside it."""
    variants = [variant for kind in KINDS for variant in results.variants(kind)]
    colours = variant_colours(variants)
    key = [(name, tiles.swatch(name, colours)) for name in colours]
    return render_document(
        run=results.settings.run,
        weights=results.parent.get("weights", ""),
        title=_title(results),
        sentence=_sentence(results),
        facts=_facts(results),
        skyline=_skyline(results, colours),
        key=key,
        sections=_sections(results, colours),
    )


def _sections(results: Results, colours: dict[str, str]) -> list[Section]:
    sections = [
        _frontier(results),
        _architectures(results, colours),
        _tasks(results),
        _readout(results),
        _speed(results),
        _solver(results),
        _scores(results),
        _costs(results),
        _training(results, colours),
        _measurements(results),
        _time(results),
        _origin(results),
    ]
    return sections


def _chosen(results: Results) -> Key | None:
    return results.final(results.settings.headline, BEST)


def name_of(key: Key) -> str:
    """Return an evaluated model's name for people."""
    if key == PARENT_KEY:
        return "parent"
    stage = "finetuned" if key.model == "finetuned" else "before finetuning"
    if key.rank == LAYERS_DROPPED:
        return f"{key.target}, layers dropped, {stage}"
    return f"{key.target}, {stage}" if key.rank == BEST else f"{key.target} #{key.rank}, {stage}"


def parent_name(results: Results) -> str:
    """Return the parent's name as its source tells it, or just that it is the parent."""
    source = results.parent.get("source", {})
    name = source.get("member") or source.get("repo") or source.get("path")
    if name is None:
        return "The parent"
    plain = Path(name).name
    return plain.removesuffix(".gguf").rpartition(".")[0] or plain if plain.endswith(".gguf") else plain


def _title(results: Results) -> str:
    chosen = _chosen(results)
    speed = results.speedup(chosen) if chosen else None
    if speed is None:
        return f"{parent_name(results)}: no child measured yet"
    return f"{parent_name(results)}, {speed.value:.2f} × as fast"


def _facts(results: Results) -> list[Fact]:
    chosen = _chosen(results)
    if chosen is None:
        return []
    facts = []
    speed = results.speedup(chosen)
    foretold = predicted(results, chosen.target, chosen.rank, "speedup")
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
    chosen = _chosen(results)
    architecture = results.architectures.get((results.settings.headline, BEST))
    said = []
    if architecture:
        kept = sum(getattr(choice, kind) == PARENT for choice in architecture for kind in KINDS)
        said.append(f"{kept} of {2 * len(architecture)} subblocks are the parent’s own.")
        for kind, name in (("attention", "Attention"), ("ffn", "FFN")):
            counts = Counter(getattr(choice, kind) for choice in architecture)
            changed = [f"{counts[v]} {'removed' if v == 'no-op' else v}" for v in results.variants(kind) if counts[v]]
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


def _skyline(results: Results, colours: dict[str, str]) -> str:
    architecture = results.architectures.get((results.settings.headline, BEST))
    if not architecture:
        return ""
    tips = {
        (row.layer, row.kind, row.variant): f" · KL alone {number(row.value)}"
        for row in rows_of(results.scores[results.scores["metric"] == "kl"])
    }
    return tiles.skyline(architecture, colours, _relative_costs(results), tips)


def _comparison_cells(comparison: Comparison, exponential: bool) -> list[Cell | str]:
    def shown(found: Estimate | None) -> str:
        if found is None:
            return "–"
        if not exponential:
            return estimate(found)
        value = math.exp(found.value)
        return estimate(Estimate(value, value * (found.standard_error or 0)))

    slower = f", at {comparison.slower.value:.3f} ×" if comparison.slower else ""
    verdict = Cell(VERDICTS[comparison.verdict], f"verdict {comparison.verdict}")
    return [shown(comparison.child), f"{shown(comparison.baseline)}{slower}", verdict]


def _frontier(results: Results) -> Section:
    section = Section(
        "frontier",
        "The frontier: quality against measured speed",
        "Every target’s best child beside the plain alternative: as many whole layers dropped as the same speed takes, "
        "finetuned on the same tokens. Lower is better; speeds are measured end to end, in turns with the parent.",
    )
    drawn = figures.frontier(results)
    if not drawn:
        section.parts.append(Note("No child has been evaluated yet."))
        return section
    scenario = results.settings.default_scenario
    section.parts.append(
        Figure(drawn, f"Held-out text; scenario “{scenario}”. Bars: one standard error. Rings: before finetuning.")
    )
    for model, said in (("finetuned", "after finetuning"), ("child", "before finetuning")):
        rows = []
        losses = {c.key: c for c in compare(results, "lm_loss", model)}
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
        if rows:
            section.parts.append(
                Table(
                    [
                        "target",
                        "measured speed-up",
                        "KL, Tangram",
                        "KL, layers dropped",
                        "closer",
                        "perplexity, Tangram",
                        "perplexity, layers dropped",
                        "lower",
                    ],
                    rows,
                    title=f"At the child’s own speed, {said}",
                    caption="Layers dropped: interpolated linearly (KL; log perplexity) at the child’s measured speed, "
                    "the parent being the first point. Beyond the fastest baseline nothing is extrapolated: that one "
                    "stands there with its own, lower speed, and only the child can win. Less than 1.96 standard "
                    "errors apart is a tie.",
                )
            )
    if not any(rank == LAYERS_DROPPED for _, rank in results.ranks):
        section.parts.append(Note("This run builds no layers-dropped baseline (compare_layers_dropped)."))
    return section


def _architectures(results: Results, colours: dict[str, str]) -> Section:
    rows = []
    for target, rank in results.ranks:
        architecture = results.architectures.get((target, rank))
        if architecture is None:
            continue
        final = results.final(target, rank)
        speed, divergence = (results.speedup(final), results.heldout(final, "kl")) if final else (None, None)
        notes = (f"{speed.value:.2f} ×" if speed else "", f"KL {number(divergence.value)}" if divergence else "")
        label = "layers dropped" if rank == LAYERS_DROPPED else target if rank == BEST else f"#{rank}"
        rows.append((label, notes, architecture, rank == BEST))
    parts: list[Part] = []
    if rows:
        parts.append(
            Figure(
                tiles.architecture_rows(rows, colours),
                "Attention above, FFN below; layer 0 at the left. Speed-up and KL as measured.",
            )
        )
    return Section(
        "architectures", "Every architecture, side by side", "What the solver gave up first, and last.", parts
    )


def _tasks(results: Results) -> Section:
    section = Section(
        "tasks",
        "Tasks",
        "Zero-shot multiple choice through lm-eval. Parent and child answer the same questions, so their difference is "
        "paired, with its own standard error: that is the number to look at.",
    )
    chosen = _chosen(results)
    names = [name for name in dict.fromkeys(results.tasks["task"]) if name != "mean"]
    if not names or chosen is None:
        section.parts.append(Note("This run evaluates no tasks."))
        return section
    keys = {"parent": PARENT_KEY, **{key.model: key for key in results.models(chosen.target, chosen.rank)}}
    drawn = []
    for task, metric, label in [
        *((name, "acc", name) for name in names),
        ("mean", "acc_above_chance", "mean above chance"),
    ]:
        found = {model: results.estimate(key, task, metric) for model, key in keys.items()}
        drawn.append((label, {model: value for model, value in found.items() if value}))
    figure = figures.task_accuracies([row for row in drawn if row[1]])
    if figure:
        section.parts.append(Figure(figure, "Accuracies of parent and child; below, their mean above chance."))
    rows: list[list[Cell | str]] = []
    for task in [*names, "mean"]:
        metric, paired = ("acc", "acc_difference")
        if task == "mean":
            metric, paired = ("acc_above_chance", "acc_above_chance_difference")
        parent = results.estimate(PARENT_KEY, task, metric)
        chance = results.estimate(PARENT_KEY, task, "chance") or results.estimate(chosen, task, "chance")
        some = parent or results.estimate(chosen, task, metric)
        row: list[Cell | str] = [
            "mean of (acc − chance) / (1 − chance)" if task == "mean" else task,
            str(some.n) if some else "–",
            f"{chance.value:.1%}".replace("%", " %") if chance else "–",
            _points(parent),
        ]
        for model in ("child", "finetuned"):
            if model in keys:
                row += [
                    _points(results.estimate(keys[model], task, metric)),
                    _points(results.estimate(keys[model], task, paired), signed=True),
                ]
        rows.append(row)
    heads = {"child": ["child, before", "difference"], "finetuned": ["finetuned", "difference"]}
    columns = ["task", "questions", "chance", "parent", *(c for m in heads if m in keys for c in heads[m])]
    section.parts.append(Table(columns, rows, caption="Accuracy in %, ± one standard error over questions."))
    return section


def _readout(results: Results) -> Section:
    section = Section(
        "readout",
        "What is left of the parent’s representation",
        "Classes of texts, read from the mean of their hidden states with a few labels per class. All models have the "
        "same texts and draws of labels, so the differences are paired.",
    )
    chosen = _chosen(results)
    if chosen is None or results.readouts.empty:
        return section
    keys = {"parent": PARENT_KEY, **{key.model: key for key in results.models(chosen.target, chosen.rank)}}
    models = [model for model in ("child", "finetuned") if model in keys]
    names = {"nearest": "nearest labelled text", "metric": "metric embedding", "linear": "linear"}
    rows: list[list[Cell | str]] = []
    for metric, name in (("kl", "KL, nats/token"), ("perplexity", "perplexity")):
        row: list[Cell | str] = ["held-out text", name, estimate(results.heldout(PARENT_KEY, metric))]
        for model in models:
            row += [estimate(results.heldout(keys[model], metric)), "–"]
        rows.append(row)
    for task in dict.fromkeys(results.readouts["task"]):
        for metric, name in names.items():
            row = [task, name, _points(results.estimate(PARENT_KEY, task, f"{metric}_accuracy"))]
            for model in models:
                row.append(_points(results.estimate(keys[model], task, f"{metric}_accuracy")))
                row.append(_points(results.estimate(keys[model], task, f"{metric}_difference"), signed=True))
            rows.append(row)
    heads = {"child": ["child, before", "difference"], "finetuned": ["finetuned", "difference"]}
    columns = ["text", "measure", "parent", *(c for m in models for c in heads[m])]
    caption = "Accuracies in %, ± one standard error over draws of labels, under perplexity and KL of the same models."
    section.parts.append(Table(columns, rows, labels=2, caption=caption))
    return section


def _points(found: Estimate | None, signed: bool = False) -> str:
    return estimate(found.times(100), signed, least=1) if found else "–"


def _speed(results: Results) -> Section:
    section = Section(
        "speed",
        "Speed: predicted and measured",
        "The solver adds up measured pieces; these tables say how well whole models keep to that sum.",
    )
    settings = results.settings
    rows: list[list[Cell | str]] = []
    for target, rank in results.ranks:
        final = results.final(target, rank)
        measured = results.speedup(final) if final else None
        foretold, speed = (predicted(results, target, rank, quantity) for quantity in ("speedup", "throughput"))
        if final is None or measured is None or foretold is None:
            continue
        own = next(
            filter(
                None,
                (
                    results.estimate(key, settings.default_scenario, "throughput")
                    for key in results.models(target, rank)
                ),
            ),
            None,
        )
        summary = summary_of(results, target, rank)
        rows.append(
            [
                model_label(target, rank),
                f"{foretold:.3f} ×",
                f"{estimate(measured)} ×",
                percent(foretold / measured.value - 1, signed=True),
                number(speed, 4),
                estimate(own),
                percent(speed / own.value - 1, signed=True) if own and speed else "–",
                number(summary.get("parameters", math.nan) / 1e6, 4),
                number(summary.get("kv_bytes_per_token", math.nan) / 1e3, 3),
            ]
        )
    if rows:
        section.parts.append(
            Table(
                [
                    "model",
                    "speed-up, predicted",
                    "measured",
                    "error",
                    "tokens/s, predicted",
                    "measured",
                    "error",
                    "parameters, M",
                    "KV, kB/token",
                ],
                rows,
                title="The children",
                caption="Predicted from the calibrated cost table, before the child existed; measured end to end. "
                "Speed-ups cancel the machine’s mood, tokens per second do not.",
            )
        )
    frame = results.calibration
    rows = []
    if len(frame):
        from tangram.costs.calibration import leave_one_out_errors

        for scenario, batch, phase in _workloads(frame):
            picked = (frame["scenario"] == scenario) & (frame["batch"] == batch) & (frame["phase"] == phase)
            part = frame[picked]
            sums = part["subblock_seconds"] + part["fixed_seconds"]
            errors = leave_one_out_errors(list(sums), list(part["measured_seconds"])) if len(part) > 1 else [math.nan]
            for row, total, error in zip(rows_of(part), sums, errors, strict=True):
                rows.append(
                    [
                        str(row.model),
                        f"{scenario}, {phase}, batch {batch}",
                        f"{1e3 * total * row.scale:,.1f}",
                        f"{1e3 * row.measured_seconds:,.1f}",
                        "–" if math.isnan(error) else percent(error, signed=True),
                        f"{row.scale:.3f}",
                    ]
                )
        section.parts.append(
            Table(
                ["model", "workload", "predicted, ms", "measured, ms", "error", "scale"],
                rows,
                labels=2,
                title="Calibration on whole models",
                caption="One scale per workload is fitted on these models; each error is that model’s under the scale "
                "the others give. Prefill is the whole prompt, decode one step.",
            )
        )
    return section


def _solver(results: Results) -> Section:
    section = Section(
        "solver",
        "What the solver says",
        "A mixed-integer program picks one variant per subblock; rank 0 is proven optimal for the sum of scores.",
    )
    rows = constraint_facts(results)
    if rows:
        section.parts.append(
            Table(
                ["solution", "constraint", "limit", "value", "slack", "price of 1 %", "Σ score", "bound", "gap"],
                rows,
                labels=2,
                caption="Slack is relative to the limit. The price is by how much Σ score, in the LP relaxation, falls "
                "when the limit is loosened by one per cent; no Σ score below the bound is possible, and the gap is "
                "what is left between the two.",
            )
        )
    selected = [
        [
            target,
            found["policy"],
            str(found["candidates"]),
            str(found["selected"]),
            number(found["mean"][found["selected"]]),
            f"{found['evaluated']:,} of {found['candidates'] * found['prompts']:,}",
            f"{found['tokens']:,}",
            f"{found['duels']:,}",
        ]
        for target, found in results.selections.items()
    ]
    if selected:
        columns = ["target", "policy", "candidates", "selected", "its score", "evaluations", "tokens", "duels"]
        caption = (
            "One of the solver’s solutions was selected on prompts of the score split before anything was finetuned. "
            "A duel compares two candidates on a prompt: a vote, where the parent is the judge."
        )
        section.parts.append(Table(columns, selected, labels=2, title="Selected candidates", caption=caption))
    children = scored_children(results)
    drawn = figures.score_against_truth(children)
    if drawn:
        everything = rank_correlation([c.score for c in children], [c.kl.value for c in children])
        own = [c for c in children if c.rank != LAYERS_DROPPED]
        alone = rank_correlation([c.score for c in own], [c.kl.value for c in own])
        said = "Σ score is a ranking signal, not a prediction."
        if everything is not None:
            said += f" Spearman’s ρ over all {len(children)} models {everything:.2f}"
            said += f", over the solver’s {len(own)} children {alone:.2f}." if alone is not None else "."
        section.parts.append(Figure(drawn, said, title="Σ score against the true KL"))
    return section


def _scores(results: Results) -> Section:
    section = Section(
        "scores",
        "What each piece costs in quality",
        "The parent with one subblock replaced: KL from the intact parent. Dots mark the pieces of the chosen child.",
    )
    frame = results.scores[results.scores["metric"] == "kl"]
    if len(frame):
        variants = {kind: results.variants(kind) for kind in KINDS}
        chosen = results.architectures.get((results.settings.headline, BEST), ())
        layers = max(results.settings.num_layers, int(frame["layer"].max()) + 1)
        drawn = tiles.score_map(frame, variants, layers, chosen)
        section.parts.append(Figure(drawn, "Columns are layers; dark is expensive. Point at a tile for its numbers."))
    return section


def _costs(results: Results) -> Section:
    section = Section(
        "costs",
        "What each piece costs in time",
        "Seconds relative to the parent’s own subblock, timed in turns with it; memory as it is.",
    )
    frame = results.costs
    if not len(frame):
        return section
    classes = frame["layer_class"].nunique() > 1
    workloads = _workloads(frame)
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


def _workloads(frame: pd.DataFrame) -> list[tuple[str, int, str]]:
    """Return the distinct scenario, batch and phase of a frame, prefill before decode."""
    found = set(zip(frame["scenario"], frame["batch"], frame["phase"], strict=True))
    return sorted(found, key=lambda workload: (workload[0], workload[1], workload[2] != "prefill"))


def _cost_cell(row: Any) -> Cell:
    share = row["seconds"] / row["parent_seconds"] if row["parent_seconds"] > 0 else math.nan
    milliseconds = f"{1e3 * row['seconds']:,.2f} ms"
    if math.isnan(share) or row["kind"] == "model":
        return Cell(milliseconds)
    background = tiles.ramp(0.55 * share)
    return Cell(f"{share:.2f}  ·  {milliseconds}", "heat", background, ink_on(background))


def _training(results: Results, colours: dict[str, str]) -> Section:
    section = Section(
        "training",
        "Training",
        "Blocks first learn alone to imitate the parent’s (BLD); the assembled child then learns as a whole (GKD).",
    )
    drawn = [
        (
            figures.bld_losses(results, colours),
            "Blocks: held-out loss by layer",
            "Ring: initial weights; dot: after training, kept; cross: training made it worse, so the initial weights "
            "were kept.",
        ),
        (
            figures.bld_curves(results, colours),
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


def _measurements(results: Results) -> Section:
    section = Section("measurements", "Every measurement", "Value ± standard error; n is tokens, turns or questions.")
    keys = [PARENT_KEY, *(key for target, rank in results.ranks for key in results.models(target, rank))]
    quality = [
        ("kl", "KL, nats/token"),
        ("perplexity", "perplexity"),
        ("lm_loss", "LM loss, nats"),
        ("agreement", "agreement"),
    ]
    rows: list[list[Cell | str]] = []
    for key in keys:
        found = [results.heldout(key, metric) for metric, _ in quality]
        counts = [value.n for value in found if value and value.n]
        if any(results.estimate(key, HELDOUT, metric) for metric, _ in quality):
            rows.append([name_of(key), *(estimate(value) for value in found), f"{counts[0]:,}" if counts else "–"])
    if rows:
        section.parts.append(Table(["model", *(label for _, label in quality), "tokens"], rows, title="Held-out text"))
    rows = []
    metrics = [
        ("speedup", "speed-up"),
        ("throughput", "throughput, tokens/s"),
        ("prefill_throughput", "prefill, tokens/s"),
        ("decode_throughput", "decode, tokens/s"),
    ]
    frame = results.evaluations
    for scenario in dict.fromkeys(frame[frame["metric"] == "throughput"]["task"]):
        for key in keys:
            timed = [results.estimate(key, scenario, metric) for metric, _ in metrics]
            counts = [value.n for value in timed if value and value.n]
            if counts:
                rows.append([name_of(key), scenario, *(estimate(value) for value in timed), str(counts[0])])
    if rows:
        heads = ["model", "scenario", *(label for _, label in metrics), "turns"]
        section.parts.append(
            Table(
                heads,
                rows,
                labels=2,
                title="Speed",
                caption="The speed-up is over the parent timed in the same turns, not over the parent’s row above. "
                "Finetuning changes no shape, so a finetuned child is not timed again.",
            )
        )
    return section


def _time(results: Results) -> Section:
    section = Section("time", "Where the time went", "Wall-clock seconds of every job, added up by stage.")
    stages = stage_seconds(results)
    if not stages:
        section.parts.append(Note("This run left no benchmarks."))
        return section
    longest, total = max(spent for _, _, spent in stages), sum(spent for _, _, spent in stages)
    rows: list[list[Cell | str]] = [
        [rule, str(jobs), Cell(seconds(spent), "bar", bar=spent / longest if longest else 0.0), percent(spent / total)]
        for rule, jobs, spent in stages
    ]
    rows.append([Cell("total", "total"), str(sum(jobs for _, jobs, _ in stages)), Cell(seconds(total), "total"), ""])
    section.parts.append(
        Table(["stage", "jobs", "time", "share"], rows, caption="Jobs that ran at once each count in full.")
    )
    return section


def _flat(prefix: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{prefix} › {name}" if prefix else str(name), inner)
    elif isinstance(value, str) and value[:1] == "{":
        try:
            yield from _flat(prefix, json.loads(value))
        except ValueError:
            yield prefix, value
    else:
        yield prefix, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _origin(results: Results) -> Section:
    settings = results.settings
    section = Section("provenance", "Provenance", "What made these numbers: enough to make them again.")
    about = {name.removeprefix("tangram."): value for name, value in results.parent.items()}
    hidden = {"command", "code", "settings", "versions", "device"}  # they stand among the tables' below
    rows = [[name, value] for name, value in _flat("", {k: v for k, v in about.items() if k not in hidden})]
    if rows:
        section.parts.append(Table(["parent", ""], rows, labels=2, title="The parent"))
    versions: dict[str, set[str]] = {}
    for record in results.provenance:
        for package, version in json.loads(record.get("versions", "{}")).items():
            versions.setdefault(package, set()).add(version)
    rows = [
        ["seed", str(settings.seed)],
        ["headline target", settings.headline],
        ["targets", ", ".join(settings.targets)],
    ]
    rows += [[package, ", ".join(sorted(found))] for package, found in sorted(versions.items())]
    section.parts.append(Table(["run", settings.run], rows, labels=2, title="The run"))
    made = [(record["command"].removeprefix("tangram.commands."), record) for record in results.provenance]
    made.sort(key=lambda pair: stage_order(pair[0]))
    records: list[list[Cell | str]] = [
        [
            Cell(command, "name"),
            Cell(record.get("code", "–"), "name"),
            record.get("device", "–"),
            record.get("settings", "–"),
        ]
        for command, record in made
    ]
    if records:
        heads = ["command", "code", "device", "settings"]
        section.parts.append(Table(heads, records, labels=4, title="Code and settings behind every table", folded=True))
    return section
