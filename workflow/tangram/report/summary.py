"""The report's numbers as plain text for a terminal."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

from collections.abc import Sequence

from tangram.report.comparison import VERDICTS, compare
from tangram.report.data import PARENT_KEY, Key, Results
from tangram.report.prediction import model_label, predicted
from tangram.report.style import estimate, seconds
from tangram.report.timing import stage_seconds


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines: the first column left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join([row[0].ljust(widths[0]), *cells])

    return [line(row) for row in rows]


def _quality(results: Results, label: str, key: Key) -> list[str]:
    accuracy = results.estimate(key, "mean", "acc_above_chance")
    return [
        label,
        *(estimate(results.heldout(key, metric)) for metric in ("kl", "perplexity", "agreement")),
        estimate(accuracy.times(100), least=1) if accuracy else "",
    ]


def _stages(results: Results) -> list[str]:
    stages = stage_seconds(results)
    if not stages:
        return []
    total = ["total", str(sum(jobs for _, jobs, _ in stages)), seconds(sum(spent for *_, spent in stages))]
    rows = [[rule, str(jobs), seconds(spent)] for rule, jobs, spent in stages]
    return [*_aligned([["stage", "jobs", "time"], *rows, total]), ""]


def _speeds(results: Results) -> list[str]:
    rows = []
    for target, solution in results.children:
        final = results.final(target, solution)
        measured = results.speedup(final) if final else None
        prediction = predicted(results, target, solution, "speedup")
        error = f"{prediction / measured.value - 1:+.1%}" if prediction and measured else "–"
        predicted_speed = f"{prediction:.3f}" if prediction else "–"
        rows.append([model_label(target, solution), predicted_speed, estimate(measured), error])
    return [*_aligned([["speed-up", "predicted", "measured", "error"], *rows]), ""] if rows else []


def _qualities(results: Results) -> list[str]:
    rows = [_quality(results, "parent", PARENT_KEY)]
    for target, solution in results.children:
        for key in results.models(target, solution):
            stage = "finetuned" if key.model == "finetuned" else "before"
            rows.append(_quality(results, f"{model_label(target, solution)}, {stage}", key))
    return _aligned([["quality", "KL, nats/token", "perplexity", "agreement", "tasks above chance, %"], *rows])


def _comparisons(results: Results) -> list[str]:
    rows = [
        [
            model_label(*comparison.key[:2]),
            f"{comparison.speed.value:.3f}",
            estimate(comparison.child),
            estimate(comparison.baseline) + (f", at {comparison.slower.value:.3f}" if comparison.slower else ""),
            VERDICTS[comparison.verdict],
        ]
        for comparison in compare(results, "kl", "finetuned")
    ]
    heads = ["finetuned, at the child’s speed", "speed-up", "KL, Tangram", "KL, layers dropped", "closer"]
    return ["", *_aligned([heads, *rows])] if rows else []


def _tasks(results: Results, target: str, solution: str) -> list[str]:
    keys = [PARENT_KEY, *(Key(target, solution, model) for model in ("child", "finetuned"))]
    rows = []
    for task in [task for task in dict.fromkeys(results.tasks["task"]) if task != "mean"]:
        accuracies = [results.estimate(key, task, "acc") for key in keys]
        differences = [results.estimate(key, task, "acc_difference") for key in keys[1:]]
        rows.append(
            [
                task,
                str(next((value.n for value in accuracies if value), "–")),
                *(estimate(value.times(100), least=1) if value else "–" for value in accuracies),
                *(estimate(value.times(100), signed=True, least=1) if value else "–" for value in differences),
            ]
        )
    heads = ["n", "parent", "child", "finetuned", "child − parent", "finetuned − parent"]
    return ["", *_aligned([[f"accuracy of {model_label(target, solution)}, %", *heads], *rows])]


def summary_text(results: Results) -> str:
    """Return seconds per stage, predicted and measured speeds, qualities of all models, and the report's path."""
    lines = [f"run {results.settings.run}", "", *_stages(results), *_speeds(results), *_qualities(results)]
    lines += _comparisons(results)
    for target, solution in results.children:
        if any((results.tasks["target"] == target) & (results.tasks["solution"] == solution)):
            lines += _tasks(results, target, solution)
    report = results.folder / "report.html"
    lines += ["", f"report: {report}" if report.exists() else f"no report yet: {report} is missing"]
    return "\n".join(lines)
