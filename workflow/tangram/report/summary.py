"""The report in a terminal: the same numbers, as plain text."""

# ruff: noqa: RUF001 - the typographic signs are meant

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


def summary_text(results: Results) -> str:
    """Return stage seconds, speeds predicted and measured, qualities of every model, and where the report is."""
    lines = [f"run {results.settings.run}", ""]
    stages = stage_seconds(results)
    if stages:
        total = ["total", str(sum(jobs for _, jobs, _ in stages)), seconds(sum(spent for *_, spent in stages))]
        lines += _aligned(
            [["stage", "jobs", "time"], *([rule, str(jobs), seconds(spent)] for rule, jobs, spent in stages), total]
        )
        lines.append("")
    speeds = []
    for target, solution in results.children:
        final = results.final(target, solution)
        measured = results.speedup(final) if final else None
        foretold = predicted(results, target, solution, "speedup")
        error = f"{foretold / measured.value - 1:+.1%}" if foretold and measured else "–"
        speeds.append(
            [model_label(target, solution), f"{foretold:.3f}" if foretold else "–", estimate(measured), error]
        )
    if speeds:
        lines += [*_aligned([["speed-up", "predicted", "measured", "error"], *speeds]), ""]
    rows = [_quality(results, "parent", PARENT_KEY)]
    for target, solution in results.children:
        for key in results.models(target, solution):
            stage = "finetuned" if key.model == "finetuned" else "before"
            rows.append(_quality(results, f"{model_label(target, solution)}, {stage}", key))
    lines += _aligned([["quality", "KL, nats/token", "perplexity", "agreement", "tasks above chance, %"], *rows])
    rows = [
        [
            model_label(*found.key[:2]),
            f"{found.speed.value:.3f}",
            estimate(found.child),
            estimate(found.baseline) + (f", at {found.slower.value:.3f}" if found.slower else ""),
            VERDICTS[found.verdict],
        ]
        for found in compare(results, "kl", "finetuned")
    ]
    if rows:
        heads = ["finetuned, at the child’s speed", "speed-up", "KL, Tangram", "KL, layers dropped", "closer"]
        lines += ["", *_aligned([heads, *rows])]
    tasks = [task for task in dict.fromkeys(results.tasks["task"]) if task != "mean"]
    pairs = [
        (target, solution)
        for target, solution in results.children
        if any((results.tasks["target"] == target) & (results.tasks["solution"] == solution))
    ]
    for target, solution in pairs:
        keys = [PARENT_KEY, *(Key(target, solution, model) for model in ("child", "finetuned"))]
        rows = []
        for task in tasks:
            found = [results.estimate(key, task, "acc") for key in keys]
            paired = [results.estimate(key, task, "acc_difference") for key in keys[1:]]
            rows.append(
                [
                    task,
                    str(next((value.n for value in found if value), "–")),
                    *(estimate(value.times(100), least=1) if value else "–" for value in found),
                    *(estimate(value.times(100), signed=True, least=1) if value else "–" for value in paired),
                ]
            )
        heads = ["n", "parent", "child", "finetuned", "child − parent", "finetuned − parent"]
        lines += ["", *_aligned([[f"accuracy of {model_label(target, solution)}, %", *heads], *rows])]
    report = results.folder / "report.html"
    lines += ["", f"report: {report}" if report.exists() else f"no report yet: {report} is missing"]
    return "\n".join(lines)
