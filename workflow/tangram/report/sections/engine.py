"""The section on the targets' engines: the exported children beside the parent's files, as llama.cpp runs them."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

from typing import Any

from tangram.blocks import PARENT
from tangram.report.data import HELDOUT, SPEEDUP, Results, rows_of
from tangram.report.document import Cell, Section, Table
from tangram.report.estimates import Estimate
from tangram.report.names import solution_name
from tangram.report.prediction import predicted
from tangram.report.style import estimate, number, percent

Measurements = dict[tuple[str, str, str], Estimate]  # by model, task and metric
HEADS = ["model", "file, MB", "KL, nats/token", "× F16 parent, predicted", "measured", "error"]
HEADS += ["tokens/s", "prefill", "decode", "first token, s"]


def engine_section(results: Results) -> Section:
    """Return the section `engine`; without parts if no target names an engine of its own."""
    section = Section(
        "engine",
        "In your engine",
        "Files that llama.cpp loads as they are: the child, and the parent in types that a user would take instead. "
        "Speed is measured there round-robin, and predicted from costs measured there. KL is that of the engine’s own "
        "logits from the parent in torch.",
    )
    for (target, solution), part in results.engines.groupby(["target", "solution"]):
        section.parts.append(_table(results, str(target), str(solution), _measurements(part)))
    return section


def _measurements(frame: Any) -> Measurements:
    return {(row.model, row.task, row.metric): Estimate(row.value, row.standard_error, row.n) for row in rows_of(frame)}


def _table(results: Results, target: str, solution: str, measured: Measurements) -> Table:
    models = dict.fromkeys(model for model, _, _ in measured)
    return Table(
        HEADS,
        [_row(results, target, solution, model, measured) for model in models],
        title=solution_name(results, target, solution),
        caption=f"Scenario {results.settings.default_scenario}. Throughput counts prompt and generated tokens; prefill "
        "and decode count their own.",
    )


def _row(results: Results, target: str, solution: str, model: str, measured: Measurements) -> list[Cell | str]:
    scenario = results.settings.default_scenario

    def value(metric: str, task: str = scenario) -> Estimate | None:
        return measured.get((model, task, metric))

    size, speedup = value("bytes", "file"), value(SPEEDUP)
    is_child = not model.startswith(PARENT)
    prediction = predicted(results, target, solution, "speedup") if is_child else None
    error = percent(prediction / speedup.value - 1, signed=True) if prediction and speedup else "–"
    return [
        solution_name(results, target, solution) if is_child else f"parent, {model.partition('@')[2].upper()}",
        number(size.value / 1e6 if size else None),
        estimate(value("kl", HELDOUT)),
        f"{prediction:.3f}" if prediction else "–",
        estimate(speedup),
        error,
        *(estimate(value(metric)) for metric in ("throughput", "prefill_throughput", "decode_throughput")),
        estimate(value("time_to_first_token")),
    ]
