"""Sections on time and provenance."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tangram.report.data import Results
from tangram.report.document import Cell, Note, Section, Table
from tangram.report.style import percent, seconds
from tangram.report.timing import stage_order, stage_seconds


def time_section(results: Results) -> Section:
    """Return the section `time`."""
    section = Section("time", "Time by stage", "Sums of the jobs’ wall-clock times.")
    stages = stage_seconds(results)
    if not stages:
        section.parts.append(Note("This run has no benchmarks."))
        return section
    longest, total = max(spent for _, _, spent in stages), sum(spent for _, _, spent in stages)
    rows: list[list[Cell | str]] = [
        [rule, str(jobs), Cell(seconds(spent), "bar", bar=spent / longest if longest else 0.0), percent(spent / total)]
        for rule, jobs, spent in stages
    ]
    rows.append([Cell("total", "total"), str(sum(jobs for _, jobs, _ in stages)), Cell(seconds(total), "total"), ""])
    section.parts.append(
        Table(["stage", "jobs", "time", "share"], rows, caption="Jobs that ran in parallel count in full.")
    )
    return section


def _flat(prefix: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{prefix} › {name}" if prefix else str(name), inner)
    elif isinstance(value, str) and value[:1] == "{":
        try:
            yield from _flat(prefix, json.loads(value))
        except ValueError:
            yield prefix, value
    else:
        yield prefix, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def origin_section(results: Results) -> Section:
    """Return the section `provenance`."""
    settings = results.settings
    section = Section(
        "provenance", "Provenance", "Parent, run, code and settings: all that is needed to reproduce these numbers."
    )
    about = {name.removeprefix("tangram."): value for name, value in results.parent.items()}
    hidden = {"command", "code", "settings", "versions", "device"}  # the last table shows them
    rows = [[name, value] for name, value in _flat("", {k: v for k, v in about.items() if k not in hidden})]
    if rows:
        section.parts.append(Table(["parent", ""], rows, labels=2, title="The parent"))
    versions: dict[str, set[str]] = {}
    for record in results.provenance:
        for package, version in json.loads(record.get("versions", "{}")).items():
            versions.setdefault(package, set()).add(version)
    rows = [
        ["seed", str(settings.seed)],
        ["primary target", settings.primary_target],
        ["targets", ", ".join(settings.targets)],
    ]
    rows += [[package, ", ".join(sorted(numbers))] for package, numbers in sorted(versions.items())]
    section.parts.append(Table(["run", settings.run], rows, labels=2, title="The run"))
    by_command = [(record["command"].removeprefix("tangram.commands."), record) for record in results.provenance]
    by_command.sort(key=lambda pair: stage_order(pair[0]))
    records: list[list[Cell | str]] = [
        [
            Cell(command, "name"),
            Cell(record.get("code", "–"), "name"),
            record.get("device", "–"),
            record.get("settings", "–"),
        ]
        for command, record in by_command
    ]
    if records:
        heads = ["command", "code", "device", "settings"]
        section.parts.append(Table(heads, records, labels=4, title="Code and settings of every table", folded=True))
    return section
