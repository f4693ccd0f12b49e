"""The section on the targets' engines: the exported children beside the parent's files, as llama.cpp runs them."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

from tangram.report.data import Results
from tangram.report.document import Cell, Section, Table
from tangram.report.engine_files import EngineFile, engine_files
from tangram.report.style import estimate, number, percent

HEADS = ["model", "file, MB", "KL, nats/token", "× F16 parent, predicted", "measured", "error"]
RATES = ["tokens/s", "prefill", "decode", "first token, s"]
HEADS += RATES
SWEEP_HEADS = ["model", "sequences", *RATES]


def engine_section(results: Results) -> Section:
    """Return the section `engine`; without parts if no target names an engine of its own."""
    section = Section(
        "engine",
        "In your engine",
        "Files that llama.cpp loads as they are: the children, and the parent in types that a user would take instead. "
        "One job times all of them round-robin, and loads each anew in every round; predictions are from costs "
        "measured there. KL is that of the engine’s own logits from the parent in torch.",
    )
    if files := engine_files(results):
        caption = (
            f"Scenario {results.settings.default_scenario}, each file at its own best batch size. Throughput counts "
            "prompt and generated tokens; prefill and decode count their own."
        )
        section.parts.append(Table(HEADS, [_row(file) for file in files], title="llama.cpp", caption=caption))
        if sweep := [row for file in files for row in _sweep(file)]:
            caption = (
                "The same measurement at every batch size of the scenario: requests that a server answers at once."
            )
            section.parts.append(Table(SWEEP_HEADS, sweep, title="By number of sequences", caption=caption))
    return section


def _sweep(file: EngineFile) -> list[list[Cell | str]]:
    return [[file.name, str(batch), *map(estimate, speeds)] for batch, speeds in file.sweep.items()]


def _row(file: EngineFile) -> list[Cell | str]:
    return [
        file.name,
        number(file.megabytes),
        estimate(file.kl),
        f"{file.predicted:.3f}" if file.predicted else "–",
        estimate(file.speedup),
        percent(file.error, signed=True) if file.error is not None else "–",
        *(estimate(speed) for speed in file.speeds),
    ]
