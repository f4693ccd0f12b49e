"""The section on speed: predicted and measured, of children and of the calibration's models."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

import math

import pandas as pd

from tangram.report.data import PACKED_SPEEDUP, SPEEDUP, Results, rows_of
from tangram.report.document import Cell, Section, Table
from tangram.report.estimates import PACKED_KEY, PARENT_KEY, Estimate, Key, ratio
from tangram.report.names import solution_name
from tangram.report.prediction import predicted, predicted_packed_parent, predicted_speedup, summary_of
from tangram.report.style import estimate, number, percent


def speed_section(results: Results) -> Section:
    """Return the section `speed`."""
    section = Section(
        "speed",
        "Speed: predicted and measured",
        "The cost model adds up measured pieces; these tables compare its predictions with whole models.",
    )
    section.parts.extend(_children_tables(results))
    section.parts.extend(_memory_table(results))
    calibration = _calibration_table(results)
    section.parts.extend([calibration] if calibration else [])
    return section


def _children_tables(results: Results) -> list[Table]:
    """Return predicted and measured speed-ups, and throughput with sizes, of all children with both speeds."""
    finals = [key for child in results.children if (key := results.final(*child))]
    finals = [key for key in finals if results.speedup(key) and predicted_speedup(results, key.target, key.solution)]
    if not finals:
        return []
    rows = [_speedup_row(results, key) for key in finals]
    measured, prediction = (
        results.speedup(PACKED_KEY),
        predicted_packed_parent(results, results.settings.primary_target),
    )
    if measured:
        rows.insert(0, [PACKED_KEY.model, *compared(prediction, measured), "1", "1", "–"])
    heads = ["model", "over the stock parent, predicted", "measured", "error"]
    heads += ["over the packed parent, predicted", "measured", "error"]
    speedups = Table(
        heads,
        rows,
        title="The children’s speed-up",
        caption="Predicted from the calibrated cost table, before the child existed; measured end to end. The stock "
        "parent runs in stock transformers, the packed parent with the kernels of the children.",
    )
    throughput = Table(
        ["model", "tokens/s, predicted", "measured", "error", "parameters, M", "KV, kB/token"],
        [_throughput_row(results, key) for key in finals],
        title="The children’s throughput and size",
        caption="Drift of the machine’s load cancels in speed-ups, but not in tokens per second.",
    )
    return [speedups, throughput]


def _memory_table(results: Results) -> list[Table]:
    """Return the batch sizes of parent and children within limits on memory; empty without such limits."""
    rows: list[list[Cell | str]] = []
    for target, solution in results.children:
        entry, parent = summary_of(results, target, solution), results.stock.get(target, {}).get("scenarios", {})
        for constraint in entry.get("constraints", []):
            scenario = constraint["scenario"]
            if constraint["quantity"] != "memory" or scenario not in parent:
                continue
            own, other = entry["scenarios"][scenario], parent[scenario]
            speed = _throughput_at(results, Key(target, solution, "child"), scenario, own["batch"])
            slow = _throughput_at(results, PARENT_KEY, scenario, other["batch"])
            measured = ratio(speed, slow) if speed and slow else None
            shown = [f"{value * 1e-6:,.0f}" for value in (constraint["limit"], other["memory"], own["memory"])]
            sizes = [shown[0], str(other["batch"]), shown[1], str(own["batch"]), shown[2]]
            rows.append(
                [solution_name(results, target, solution), scenario, *sizes, *compared(own["speedup"], measured)]
            )
    if not rows:
        return []
    heads = ["limit, MB", "parent’s batch", "MB", "child’s batch", "MB", "speed-up, predicted", "measured", "error"]
    caption = (
        "Each model has the fastest of the batch sizes at which weights and full KV cache fit. Speed-ups are over the "
        "stock parent at its own batch size; all other tables have every model’s fastest batch size, whatever its "
        "memory."
    )
    return [
        Table(
            ["model", "scenario", *heads], rows, labels=2, title="Batch sizes within a limit on memory", caption=caption
        )
    ]


def _throughput_at(results: Results, key: Key, scenario: str, batch: int) -> Estimate | None:
    """Return a measured throughput at a batch size; with a single size, the scenario's."""
    at_batch = results.estimate(key, scenario, f"throughput_at_{batch}")
    return at_batch or results.estimate(key, scenario, "throughput")


def compared(value: float | None, measured: Estimate | None) -> list[str]:
    """Return a predicted and a measured speed-up, and the relative error of the prediction, as text."""
    error = percent(value / measured.value - 1, signed=True) if value and measured else "–"
    return [f"{value:.3f} ×" if value else "–", f"{estimate(measured)} ×" if measured else "–", error]


def _speedup_row(results: Results, key: Key) -> list[str]:
    row = [solution_name(results, key.target, key.solution)]
    for metric in (SPEEDUP, PACKED_SPEEDUP):
        row += compared(predicted_speedup(results, key.target, key.solution, metric), results.speedup(key, metric))
    return row


def _throughput_row(results: Results, key: Key) -> list[str]:
    speed = predicted(results, key.target, key.solution, "throughput")
    scenario, models = results.settings.default_scenario, results.models(key.target, key.solution)
    throughput = next(filter(None, (results.estimate(key, scenario, "throughput") for key in models)), None)
    summary = summary_of(results, key.target, key.solution)
    return [
        solution_name(results, key.target, key.solution),
        number(speed, 4),
        estimate(throughput),
        percent(speed / throughput.value - 1, signed=True) if throughput and speed else "–",
        number(summary.get("parameters", math.nan) / 1e6, 4),
        number(summary.get("kv_bytes_per_token", math.nan) / 1e3, 3),
    ]


def _calibration_table(results: Results) -> Table | None:
    """Return predicted and measured seconds of the calibration's models; None without a calibration."""
    frame = results.calibration
    if not len(frame):
        return None
    return Table(
        ["model", "workload", "predicted, ms", "measured, ms", "error", "scale"],
        [row for workload in workloads_of(frame) for row in _calibration_rows(frame, *workload)],
        labels=2,
        title="Calibration on whole models",
        caption="One scale per workload is fitted on these models; each error is leave-one-out: the scale is fitted "
        "on the other models. Prefill is the whole prompt, decode one step.",
    )


def _calibration_rows(frame: pd.DataFrame, scenario: str, batch: int, phase: str) -> list[list[Cell | str]]:
    from tangram.costs.calibration import STOCK, leave_one_out_errors

    frame = frame[frame["model"] != STOCK]  # it has other kernels, so that no scale is fitted to it
    part = frame[(frame["scenario"] == scenario) & (frame["batch"] == batch) & (frame["phase"] == phase)]
    sums = part["subblock_seconds"] + part["fixed_seconds"]
    errors = leave_one_out_errors(list(sums), list(part["measured_seconds"])) if len(part) > 1 else [math.nan]
    return [
        [
            str(row.model),
            f"{scenario}, {phase}, batch {batch}",
            f"{1e3 * total * row.scale:,.1f}",
            f"{1e3 * row.measured_seconds:,.1f}",
            "–" if math.isnan(error) else percent(error, signed=True),
            f"{row.scale:.3f}",
        ]
        for row, total, error in zip(rows_of(part), sums, errors, strict=True)
    ]


def workloads_of(frame: pd.DataFrame) -> list[tuple[str, int, str]]:
    """Return the distinct scenario, batch and phase of a frame, prefill before decode."""
    workloads = set(zip(frame["scenario"], frame["batch"], frame["phase"], strict=True))
    return sorted(workloads, key=lambda workload: (workload[0], workload[1], workload[2] != "prefill"))
