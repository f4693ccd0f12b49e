"""The section on speed: predicted and measured, of children and of the calibration's models."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

import math

import pandas as pd

from tangram.report.data import Results, rows_of
from tangram.report.document import Cell, Section, Table
from tangram.report.prediction import model_label, predicted, summary_of
from tangram.report.style import estimate, number, percent


def speed_section(results: Results) -> Section:
    """Return the section `speed`."""
    section = Section(
        "speed",
        "Speed: predicted and measured",
        "The cost model adds up measured pieces; these tables compare its predictions with whole models.",
    )
    section.parts.extend(table for table in (_children_table(results), _calibration_table(results)) if table)
    return section


def _children_table(results: Results) -> Table | None:
    """Return predicted and measured speeds of all children; None without a measured one."""
    rows = [row for child in results.children if (row := _child_row(results, *child))]
    if not rows:
        return None
    heads = ["model", "speed-up, predicted", "measured", "error", "tokens/s, predicted", "measured", "error"]
    return Table(
        [*heads, "parameters, M", "KV, kB/token"],
        rows,
        title="The children",
        caption="Predicted from the calibrated cost table, before the child existed; measured end to end. "
        "Drift of the machine’s load cancels in speed-ups, but not in tokens per second.",
    )


def _child_row(results: Results, target: str, solution: str) -> list[Cell | str] | None:
    """Return a child's row; None unless its speed was predicted and measured."""
    final = results.final(target, solution)
    measured = results.speedup(final) if final else None
    speedup, speed = (predicted(results, target, solution, quantity) for quantity in ("speedup", "throughput"))
    if measured is None or speedup is None:
        return None
    scenario, models = results.settings.default_scenario, results.models(target, solution)
    throughput = next(filter(None, (results.estimate(key, scenario, "throughput") for key in models)), None)
    summary = summary_of(results, target, solution)
    return [
        model_label(target, solution),
        f"{speedup:.3f} ×",
        f"{estimate(measured)} ×",
        percent(speedup / measured.value - 1, signed=True),
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
