"""What a run will need before it runs: `tangram plan --config config/llama-3.1-70b-h100.yaml`.

The work of every stage is counted from the config, and divided by what a device does in a second (`estimate.py`). The
rates are round figures (`RATES`, or options of the command); beside a finished run, `--measured` shows how far off they
are. Jobs of a stage run side by side where a cluster lets them: device-hours are what they add up to.
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
from tangram.tools.estimate import RATES, Stage, stages

# Whose memory is a device's; the others' is the node's.
ON_DEVICE = {
    "build_corpus", "capture_activations", "distill_blocks", "score_blocks", "measure_costs", "calibrate_costs",
    "finetune_child", "evaluate_model",
}  # fmt: skip


def merged(found: Iterator[Stage]) -> list[Stage]:
    """Return one stage per rule: mean seconds, largest memory, all disk."""
    rules: dict[str, Stage] = {}
    for stage in found:
        known = rules.get(stage.rule)
        if known is None:
            rules[stage.rule] = stage
            continue
        jobs = known.jobs + stage.jobs
        rules[stage.rule] = replace(
            known,
            jobs=jobs,
            seconds=(known.jobs * known.seconds + stage.jobs * stage.seconds) / jobs,
            device_bytes=max(known.device_bytes, stage.device_bytes),
            disk_bytes=known.disk_bytes + stage.disk_bytes,
        )
    return list(rules.values())


def mean_seconds(results: Path) -> dict[str, float]:
    """Return the mean seconds of a job, by rule, of a run's finished jobs, from its benchmarks."""
    means = {}
    for folder in sorted((results / "benchmarks").glob("*")):
        seconds = [float(path.read_text().splitlines()[1].split("\t")[0]) for path in sorted(folder.rglob("*.tsv"))]
        if seconds:
            means[folder.name] = sum(seconds) / len(seconds)
    return means


def with_measured(found: list[Stage], results: Path) -> list[Stage]:
    """Return the stages with the mean seconds that a finished run's jobs took."""
    measured = mean_seconds(results)
    return [replace(stage, measured=measured.get(stage.rule)) for stage in found]


def expected_seconds(config: str | Path) -> dict[str, float]:
    """Return the seconds of a job, by rule: as the same run took before, else as planned; rules may be missing."""
    expected: dict[str, float] = {}
    with suppress(TangramError):  # neither can be told without a config, nor the plan before the parent is there
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
    """Write a time in the unit that it is read in."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def table(found: list[Stage], device: str) -> str:
    """Return the plan as a table of plain text."""
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
        for stage in found
    ]
    rows.append(
        [
            "all",
            str(sum(stage.jobs for stage in found)),
            "",
            "",
            f"{sum(stage.device_hours for stage in found):.2f}",
            _bytes(max(stage.device_bytes for stage in found)),
            _bytes(sum(stage.disk_bytes for stage in found)),
        ]
    )
    if any(stage.measured is not None for stage in found):
        head += ["measured each", "planned / measured"]
        for row, stage in zip(rows, found, strict=False):
            known = stage.measured
            row += ["-", "-"] if known is None else [duration(known), f"{stage.seconds / known:.2f}"]
        rows[-1] += ["", ""]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    aligned = [
        [row[0].ljust(widths[0])] + [row[i].rjust(widths[i]) for i in range(1, len(head))] for row in [head, *rows]
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def plan(
    config: Annotated[Path, typer.Option(help="config file")] = Path("config/config.yaml"),
    flops: Annotated[float | None, typer.Option(help="useful operations per second of one device")] = None,
    disk: Annotated[float | None, typer.Option(help="bytes per second of the shared file system")] = None,
    memory: Annotated[float, typer.Option(help="bytes of one GPU")] = 80e9,
    measured: Annotated[Path | None, typer.Option(help="a finished run's folder to compare with")] = None,
) -> None:
    """Print jobs, device-hours, memory and disk of every stage of a run, computed from its config."""
    settings = load(config)
    rates = RATES[settings.device]
    rates = replace(rates, flops=flops or rates.flops, disk_bytes=disk or rates.disk_bytes)
    found = merged(stages(settings, rates))
    if measured is not None:
        found = with_measured(found, measured)
    print(table(found, settings.device))
    for stage in found:
        if settings.device == "cuda" and stage.rule in ON_DEVICE and stage.device_bytes > memory:
            print(f"{stage.rule} does not fit: {_bytes(stage.device_bytes)} on a device of {_bytes(memory)}")


if __name__ == "__main__":
    run(plan)
