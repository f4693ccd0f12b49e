"""The section on speed: predicted and measured, of children and of the models that calibrate."""

# ruff: noqa: RUF001 - the typographic signs are meant

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
        "The solver adds up measured pieces; these tables say how well whole models keep to that sum.",
    )
    settings = results.settings
    rows: list[list[Cell | str]] = []
    for target, solution in results.children:
        final = results.final(target, solution)
        measured = results.speedup(final) if final else None
        foretold, speed = (predicted(results, target, solution, quantity) for quantity in ("speedup", "throughput"))
        if final is None or measured is None or foretold is None:
            continue
        own = next(
            filter(
                None,
                (
                    results.estimate(key, settings.default_scenario, "throughput")
                    for key in results.models(target, solution)
                ),
            ),
            None,
        )
        summary = summary_of(results, target, solution)
        rows.append(
            [
                model_label(target, solution),
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

        for scenario, batch, phase in workloads_of(frame):
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


def workloads_of(frame: pd.DataFrame) -> list[tuple[str, int, str]]:
    """Return the distinct scenario, batch and phase of a frame, prefill before decode."""
    found = set(zip(frame["scenario"], frame["batch"], frame["phase"], strict=True))
    return sorted(found, key=lambda workload: (workload[0], workload[1], workload[2] != "prefill"))
