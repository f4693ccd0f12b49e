"""Print a run's needs before it runs: `tangram plan --config config/llama-3.1-70b-8xh100.yaml`.

`estimate.py` counts the work of every stage from the config and divides it by a device's rates, which are rough
(`RATES`, or options of the command); `--measured` compares the plan with a finished run. Device-hours are sums over
jobs, which may run in parallel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tangram.cli import run
from tangram.config import load
from tangram.errors import TangramError
from tangram.tools.estimate import stages
from tangram.tools.rates import RATES, Stage

# Rules whose memory is a device's; that of the others is the node's.
ON_DEVICE = {
    "build_corpus", "try_text", "capture_activations", "measure_moments", "distill_blocks", "distill_pairs",
    "quantize_blocks", "score_blocks", "score_tasks", "score_layers", "score_screened", "measure_costs",
    "calibrate_costs", "iterate_child", "finetune_child", "evaluate_model", "measure_speed",
}  # fmt: skip


def merged(parts: Iterator[Stage]) -> list[Stage]:
    """Return one stage per rule: mean seconds, largest memory, sum of disk."""
    rules: dict[str, Stage] = {}
    for part in parts:
        stage = rules.get(part.rule)
        if stage is None:
            rules[part.rule] = part
            continue
        jobs = stage.jobs + part.jobs
        rules[part.rule] = replace(
            stage,
            jobs=jobs,
            seconds=(stage.jobs * stage.seconds + part.jobs * part.seconds) / jobs,
            device_bytes=max(stage.device_bytes, part.device_bytes),
            disk_bytes=stage.disk_bytes + part.disk_bytes,
        )
    return list(rules.values())


def mean_seconds(results: Path) -> dict[str, float]:
    """Return the mean seconds per job of a run's finished jobs, by rule, from its benchmarks."""
    means = {}
    for folder in sorted((results / "benchmarks").glob("*")):
        seconds = [float(path.read_text().splitlines()[1].split("\t")[0]) for path in sorted(folder.rglob("*.tsv"))]
        if seconds:
            means[folder.name] = sum(seconds) / len(seconds)
    return means


def with_measured(planned: list[Stage], results: Path) -> list[Stage]:
    """Return the stages with the mean seconds per job of a finished run."""
    measured = mean_seconds(results)
    return [replace(stage, measured=measured.get(stage.rule)) for stage in planned]


def expected_seconds(config: str | Path) -> dict[str, float]:
    """Return the seconds per job by rule, from the run's finished jobs, else from the plan; rules may be missing."""
    expected: dict[str, float] = {}
    with suppress(TangramError):  # without a config nothing is known; without the parent's sizes there is no plan
        settings = load(config)
        expected = mean_seconds(Path("results", settings.run))
        planned = merged(stages(settings, RATES[settings.device]))
        expected = {stage.rule: stage.seconds for stage in planned} | expected
    return expected


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.3g} {unit}" if value else "-"
        value /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def table(planned: list[Stage], device: str) -> str:
    """Return the plan as a plain-text table."""
    unit = "GPU" if device == "cuda" else "core"
    head = ["rule", "jobs", f"{unit}s each", "time each", f"{unit}-hours", "memory each", "disk in all"]
    rows = [
        [
            stage.rule,
            str(stage.jobs),
            str(stage.devices),
            duration(stage.seconds),
            f"{stage.device_hours:.2f}",
            _bytes(stage.device_bytes),
            _bytes(stage.disk_bytes),
        ]
        for stage in planned
    ]
    rows.append(
        [
            "all",
            str(sum(stage.jobs for stage in planned)),
            "",
            "",
            f"{sum(stage.device_hours for stage in planned):.2f}",
            _bytes(max(stage.device_bytes for stage in planned)),
            _bytes(sum(stage.disk_bytes for stage in planned)),
        ]
    )
    if any(stage.measured is not None for stage in planned):
        head += ["measured each", "planned / measured"]
        for row, stage in zip(rows, planned, strict=False):
            seconds = stage.measured
            row += ["-", "-"] if seconds is None else [duration(seconds), f"{stage.seconds / seconds:.2f}"]
        rows[-1] += ["", ""]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    aligned = [
        [row[0].ljust(widths[0])] + [row[i].rjust(widths[i]) for i in range(1, len(head))] for row in [head, *rows]
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def plan(
    config: Annotated[Path, typer.Option(help="config file")] = Path("config/config.yaml"),
    flops: Annotated[float | None, typer.Option(help="effective operations per second of one device")] = None,
    disk: Annotated[float | None, typer.Option(help="bytes per second of the shared file system")] = None,
    memory: Annotated[float, typer.Option(help="memory of one GPU in bytes")] = 80e9,
    measured: Annotated[Path | None, typer.Option(help="a finished run's folder to compare with")] = None,
) -> None:
    """Print jobs, device-hours, memory and disk of every stage of a run, estimated from its config."""
    settings = load(config)
    rates = RATES[settings.device]
    rates = replace(rates, flops=flops or rates.flops, disk_bytes=disk or rates.disk_bytes)
    planned = merged(stages(settings, rates))
    if measured is not None:
        planned = with_measured(planned, measured)
    print(table(planned, settings.device))
    if (passes := (settings.finetune.budget.tokens or 0) / settings.corpus.finetune.tokens) > 1:
        print(
            f"finetune_child trains on {passes:.2g} passes over the finetune split; corpus.finetune.tokens is its size"
        )
    for stage in planned:
        if settings.device == "cuda" and stage.rule in ON_DEVICE and stage.device_bytes > memory:
            print(f"{stage.rule} does not fit: {_bytes(stage.device_bytes)} on a device of {_bytes(memory)}")


if __name__ == "__main__":
    run(plan)
