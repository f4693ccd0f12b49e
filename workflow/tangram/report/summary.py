"""The report's numbers as plain text for a terminal."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

from collections.abc import Sequence

from tangram.report.comparison import RIVAL_VERDICTS, VERDICTS, Meeting, beside_uniform, compare, quality_kept
from tangram.report.data import PACKED_SPEEDUP, SPEEDUP, Results
from tangram.report.engine_files import REFERENCE_NAMES, EngineFile, engine_files, without_empty
from tangram.report.estimates import PACKED_KEY, PARENT_KEY, Estimate, Key
from tangram.report.names import solution_name
from tangram.report.prediction import predicted_packed_parent, predicted_speedup
from tangram.report.style import estimate, number, percent_of, seconds
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
    kept = quality_kept(results, key) if key != PARENT_KEY else None
    return [
        label,
        *(estimate(results.heldout(key, metric)) for metric in ("kl", "perplexity", "agreement")),
        estimate(accuracy.times(100), least=1) if accuracy else "",
        percent_of(kept) if kept else "",
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
    packed = results.speedup(PACKED_KEY)
    if packed:
        prediction = predicted_packed_parent(results, results.settings.primary_target)
        rows.append([PACKED_KEY.model, *_speed(prediction, packed), "1", "1", "–"])
    for target, solution in results.children:
        final = results.final(target, solution)
        row = [solution_name(results, target, solution)]
        for metric in (SPEEDUP, PACKED_SPEEDUP):
            measured = results.speedup(final, metric) if final else None
            row += _speed(predicted_speedup(results, target, solution, metric), measured)
        rows.append(row)
    heads = ["over the stock parent: predicted", "measured", "error", "over the packed parent: predicted", "measured"]
    return [*_aligned([["speed-up", *heads, "error"], *rows]), ""] if rows else []


def _speed(prediction: float | None, measured: Estimate | None) -> list[str]:
    """Return predicted and measured speed-up and the relative error."""
    error = f"{prediction / measured.value - 1:+.1%}" if prediction and measured else "–"
    return [f"{prediction:.3f}" if prediction else "–", estimate(measured), error]


def _engine(results: Results) -> list[str]:
    """Return the files that each engine other than torch runs; none if all targets are in torch."""
    files = engine_files(results)
    return [line for engine in dict.fromkeys(f.engine for f in files) for line in _in_engine(engine, files)]


def _in_engine(engine: str, files: Sequence[EngineFile]) -> list[str]:
    rows = [
        [
            file.name,
            f"{file.predicted:.3f}" if file.predicted else "–",
            estimate(file.speedup),
            f"{file.error:+.1%}" if file.error is not None else "–",
            estimate(file.kl),
            number(file.megabytes),
        ]
        for file in files
        if file.engine == engine
    ]
    heads = [f"over the {REFERENCE_NAMES[engine]}: predicted", "measured", "error", "KL, nats/token", "file, MB"]
    heads, rows = without_empty([f"in {engine}", *heads], rows)
    return ["", *_aligned([heads, *rows])]


def _qualities(results: Results) -> list[str]:
    rows = [_quality(results, "parent", PARENT_KEY)]
    for target, solution in results.children:
        for key in results.models(target, solution):
            stage = "finetuned" if key.model == "finetuned" else "before"
            rows.append(_quality(results, f"{solution_name(results, target, solution)}, {stage}", key))
    heads = ["KL, nats/token", "perplexity", "agreement", "tasks above chance, %", "quality kept, %"]
    return _aligned([["quality", *heads], *rows])


def _comparisons(results: Results) -> list[str]:
    reference = results.best_parent.model
    rows = [
        [
            solution_name(results, *comparison.key[:2]),
            f"{comparison.speed.value:.3f}",
            estimate(comparison.child),
            estimate(comparison.baseline) + (f", at {comparison.slower.value:.3f}" if comparison.slower else ""),
            VERDICTS[comparison.verdict],
        ]
        for comparison in compare(results, "kl", "finetuned")
    ]
    heads = ["finetuned, at the child’s speed", f"over the {reference}", "KL, Tangram", "KL, layers dropped", "closer"]
    lines = ["", *_aligned([heads, *rows])] if rows else []
    rivals = [
        [
            solution_name(results, *rivalry.key[:2]),
            f"{rivalry.speed.value:.3f}",
            estimate(rivalry.kl),
            *_meeting(rivalry.at_speed),
            *_meeting(rivalry.at_kl),
            *(solution_name(results, *key[:2]) if key else "–" for key in (rivalry.better, rivalry.as_fast)),
        ]
        for rivalry in beside_uniform(results, "finetuned")
    ]
    heads = ["finetuned, beside uniform precision", f"over the {reference}", "KL"]
    heads += [
        "KL, Tangram at this speed",
        "closer",
        "speed, Tangram at this KL",
        "faster",
        "faster and closer",
        "as fast and closer",
    ]
    return [*lines, *(["", *_aligned([heads, *rivals])] if rivals else [])]


def _meeting(meeting: Meeting) -> list[str]:
    nearest = f", at {meeting.nearest.value:.3g}" if meeting.nearest else ""
    return [f"{estimate(meeting.children)}{nearest}", RIVAL_VERDICTS[meeting.verdict]]


def _tasks(results: Results, target: str, solution: str) -> list[str]:
    keys = [PARENT_KEY, *(Key(target, solution, model) for model in ("child", "finetuned"))]
    rows = []
    for task in [task for task in dict.fromkeys(results.tasks["task"]) if task != "mean"]:
        metric = results.counted[task]
        accuracies = [results.estimate(key, task, metric) for key in keys]
        differences = [results.estimate(key, task, f"{metric}_difference") for key in keys[1:]]
        rows.append(
            [
                task,
                str(next((value.n for value in accuracies if value), "–")),
                *(estimate(value.times(100), least=1) if value else "–" for value in accuracies),
                *(estimate(value.times(100), signed=True, least=1) if value else "–" for value in differences),
            ]
        )
    heads = ["n", "parent", "child", "finetuned", "child − parent", "finetuned − parent"]
    return ["", *_aligned([[f"accuracy of {solution_name(results, target, solution)}, %", *heads], *rows])]


def summary_text(results: Results) -> str:
    """Return seconds per stage, predicted and measured speeds, qualities of all models, and the report's path."""
    lines = [f"run {results.settings.run}", "", *_stages(results), *_speeds(results), *_qualities(results)]
    lines += [*_engine(results), *_comparisons(results)]
    for target, solution in results.children:
        if any((results.tasks["target"] == target) & (results.tasks["solution"] == solution)):
            lines += _tasks(results, target, solution)
    report = results.folder / "report.html"
    lines += ["", f"report: {report}" if report.exists() else f"no report yet: {report} is missing"]
    return "\n".join(lines)
