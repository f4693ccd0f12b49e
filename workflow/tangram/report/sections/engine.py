"""The section on the targets' engines: the exported children beside the parent, as their engines run them."""

# ruff: noqa: RUF001 - typographic signs

from __future__ import annotations

from tangram.report.data import Results
from tangram.report.document import Cell, Section, Table
from tangram.report.engine_files import REFERENCE_NAMES, EngineFile, engine_files, without_empty
from tangram.report.style import estimate, number, percent

RATES = ["tokens/s", "prefill", "decode", "first token, s"]
HEADS = ["measured", "error", *RATES]
SWEEP_HEADS = ["model", "sequences", *RATES]


def engine_section(results: Results) -> Section:
    """Return the section `engine`; without parts if no target names an engine of its own."""
    section = Section(
        "engine",
        "In your engine",
        "The children as their target’s engine loads them, and the parent as a user would take it there instead: in "
        "llama.cpp as files of several types, in vLLM its checkpoint. One job per engine times them round-robin, and "
        "loads each anew in every round; predictions are from costs measured there. KL is that of the engine’s own "
        "logits from the parent in torch.",
    )
    files = engine_files(results)
    for engine in dict.fromkeys(file.engine for file in files):
        caption = (
            f"Scenario {results.settings.default_scenario}, each at its own best batch size. Throughput counts prompt "
            "and generated tokens; prefill and decode count their own."
        )
        of_engine = [file for file in files if file.engine == engine]
        heads = ["model", "file, MB", "KL, nats/token", f"× {REFERENCE_NAMES[engine]}, predicted", *HEADS]
        rows = [_row(file) for file in of_engine]
        section.parts.append(Table(*without_empty(heads, rows), title=engine, caption=caption))
        if sweep := [row for file in of_engine for row in _sweep(file)]:
            caption = (
                "The same measurement at every batch size of the scenario: requests that a server answers at once."
            )
            title = f"{engine}, by number of sequences"
            section.parts.append(Table(SWEEP_HEADS, sweep, title=title, caption=caption))
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
