"""Sections on quality: tasks, readouts, and every measurement."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

from tangram.report import figures
from tangram.report.comparison import quality_difference, quality_kept
from tangram.report.data import HELDOUT, Results
from tangram.report.document import Cell, Figure, Note, Section, Table
from tangram.report.estimates import PACKED_KEY, PARENT_KEY, Estimate, Key
from tangram.report.names import name_of
from tangram.report.samples import changed_answers
from tangram.report.style import estimate, percent_interval, percent_of


def tasks_section(results: Results) -> Section:
    """Return the section `tasks`."""
    section = Section(
        "tasks",
        "Tasks",
        "Benchmarks with lm-eval. Parent and child answer the same questions, so the relevant number is their paired "
        "difference, which has a smaller standard error.",
    )
    chosen = results.chosen
    names = [name for name in dict.fromkeys(results.tasks["task"]) if name != "mean"]
    if not names or chosen is None:
        section.parts.append(Note("This run evaluates no tasks."))
        return section
    keys = {"parent": PARENT_KEY, **{key.model: key for key in results.models(chosen.target, chosen.solution)}}
    drawn = []
    for task, metric, label in [
        *((name, results.counted[name], name) for name in names),
        ("mean", "acc_above_chance", "mean above chance"),
    ]:
        accuracies = {model: results.estimate(key, task, metric) for model, key in keys.items()}
        drawn.append((label, {model: value for model, value in accuracies.items() if value}))
    figure = figures.task_accuracies([row for row in drawn if row[1]])
    if figure:
        section.parts.append(Figure(figure, "Accuracies of parent and child; the last row is their mean above chance."))
    rows: list[list[Cell | str]] = []
    for task in [*names, "mean"]:
        metric = "acc_above_chance" if task == "mean" else results.counted[task]
        paired = f"{metric}_difference"
        parent = results.estimate(PARENT_KEY, task, metric)
        chance = results.estimate(PARENT_KEY, task, "chance") or results.estimate(chosen, task, "chance")
        measured = parent or results.estimate(chosen, task, metric)
        row: list[Cell | str] = [
            "mean of (acc − chance) / (1 − chance)" if task == "mean" else _task_label(task, metric),
            str(measured.n) if measured else "–",
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
    caption = "Accuracy in %, ± one standard error over questions; of a task with another metric, that."
    kept = quality_kept(results, chosen)
    if kept:
        caption += (
            f" The child keeps {percent_of(kept)} % of the parent’s mean above chance, the accuracy preserved of the "
            "Puzzle paper, with the error of the paired difference."
        )
    section.parts.append(Table(columns, rows, caption=caption))
    section.parts.extend(_kept_table(results, chosen))
    return section


def _task_label(task: str, metric: str) -> str:
    return task if metric == "acc" else f"{task}, {metric}"


def _kept_table(results: Results, chosen: Key) -> list[Table]:
    """Return the quality that the chosen child and its rivals keep, and its paired difference from each rival."""
    rows: list[list[Cell | str]] = []
    for target, solution in results.children:
        key = chosen if (target, solution) == chosen[:2] else results.final(target, solution)
        kept = quality_kept(results, key) if key else None
        if key is None or kept is None:
            continue
        difference = quality_difference(results, chosen, key) if key != chosen else None
        name = name_of(results, key)
        changed = changed_answers(results.samples, key)
        rows.append(
            [
                Cell(name, "total") if key == chosen else name,
                percent_of(kept),
                percent_interval(kept),
                f"{changed} of {kept.n}" if changed is not None else "–",
                _points(difference, signed=True),
                percent_interval(difference),
            ]
        )
    if len(rows) < 2:
        return []
    heads = ["quality kept, %", "95 % interval", "changed answers", "child − rival, points", "95 % interval"]
    caption = (
        "Quality kept: mean over tasks of (accuracy − chance) / (1 − chance) as a share of the parent’s. All models "
        "answer the same questions, so differences are paired by question. Changed answers: right in either this "
        "model or the parent alone; with none, an error of 0 says only that fewer than 3 in this many are expected."
    )
    return [Table(["model", *heads], rows, title="Quality kept by the child and its rivals", caption=caption)]


def _points(share: Estimate | None, signed: bool = False) -> str:
    return estimate(share.times(100), signed, least=1) if share else "–"


def readout_section(results: Results) -> Section:
    """Return the section `readout`."""
    section = Section(
        "readout",
        "Few-label readout",
        "Classification of texts from the mean of their hidden states with a few labels per class, a measure of the "
        "preserved representation. All models have the same texts and draws of labels, so the differences are paired.",
    )
    chosen = results.chosen
    if chosen is None or results.readouts.empty:
        return section
    keys = {"parent": PARENT_KEY, **{key.model: key for key in results.models(chosen.target, chosen.solution)}}
    models = [model for model in ("child", "finetuned") if model in keys]
    names = {"nearest": "nearest labeled text", "metric": "metric embedding", "linear": "linear"}
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
    caption = "Accuracies in %, ± one standard error over draws of labels; above, KL and perplexity of the same models."
    section.parts.append(Table(columns, rows, labels=2, caption=caption))
    return section


def measurements_section(results: Results) -> Section:
    """Return the section `measurements`."""
    section = Section(
        "measurements", "Every measurement", "Value ± standard error; n is the number of tokens, rounds or questions."
    )
    keys = [PARENT_KEY, *(key for target, solution in results.children for key in results.models(target, solution))]
    quality = [
        ("kl", "KL, nats/token"),
        ("perplexity", "perplexity"),
        ("lm_loss", "LM loss, nats"),
        ("agreement", "agreement"),
    ]
    rows: list[list[Cell | str]] = []
    for key in keys:
        measured = [results.heldout(key, metric) for metric, _ in quality]
        counts = [value.n for value in measured if value and value.n]
        if any(results.estimate(key, HELDOUT, metric) for metric, _ in quality):
            rows.append(
                [name_of(results, key), *(estimate(value) for value in measured), f"{counts[0]:,}" if counts else "–"]
            )
    if rows:
        section.parts.append(Table(["model", *(label for _, label in quality), "tokens"], rows, title="Held-out text"))
    rows = []
    metrics = [
        ("speedup", "over the stock parent"),
        ("packed_speedup", "over the packed parent"),
        ("throughput", "throughput, tokens/s"),
        ("prefill_throughput", "prefill, tokens/s"),
        ("decode_throughput", "decode, tokens/s"),
    ]
    frame = results.speeds
    for scenario in dict.fromkeys(frame[frame["metric"] == "throughput"]["task"]):
        for key in [PARENT_KEY, PACKED_KEY, *keys[1:]]:
            timed = [results.estimate(key, scenario, metric) for metric, _ in metrics]
            counts = [value.n for value in timed if value and value.n]
            if counts:
                rows.append([name_of(results, key), scenario, *(estimate(value) for value in timed), str(counts[0])])
    if rows:
        heads = ["model", "scenario", *(label for _, label in metrics), "rounds"]
        section.parts.append(
            Table(
                heads,
                rows,
                labels=2,
                title="Speed",
                caption="Speed-ups are medians over rounds of a job that times all models, not ratios of medians: the "
                "stock parent runs in stock transformers, the packed parent with the kernels of the children. "
                "Finetuning does not change a child’s shape, so a finetuned child is not timed again.",
            )
        )
    return section
