"""The files that engines other than torch run: exported children, and the parent as a user would take it instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tangram.blocks.base import PARENT
from tangram.engines import LLAMA_CPP, PARENT_TYPES, REFERENCES, VLLM
from tangram.report.data import HELDOUT, SPEEDUP, Results, rows_of
from tangram.report.estimates import Estimate, Key
from tangram.report.names import solution_name
from tangram.report.prediction import predicted


@dataclass(frozen=True)
class EngineFile:
    """One file, or in vLLM one checkpoint.

    Attributes:
        engine: its engine.
        name: display name.
        megabytes: its size; None if it was not evaluated.
        kl: KL of the engine's own logits from the parent in torch, nats per token.
        predicted: speed-up over the engine's reference from costs that were measured there; None of the parent.
        speedup: the measured one.
        speeds: throughput, prefill throughput, decode throughput (tokens/s), and seconds to the first token.
        sweep: the same at each batch size, if the scenario has several.
    """

    engine: str
    name: str
    megabytes: float | None
    kl: Estimate | None
    predicted: float | None
    speedup: Estimate | None
    speeds: tuple[Estimate | None, ...]
    sweep: dict[int, tuple[Estimate | None, ...]]

    @property
    def error(self) -> float | None:
        """The relative error of the prediction."""
        return self.predicted / self.speedup.value - 1 if self.predicted and self.speedup else None


FILES = {f"{PARENT}@{name}": f"parent, {name.upper()}" for name in PARENT_TYPES}  # names of the parent's files
REFERENCE_NAMES = {LLAMA_CPP: "F16 parent", VLLM: "parent"}
MISSING = "–"  # noqa: RUF001 - the sign of `style`
SPEEDS = ("throughput", "prefill_throughput", "decode_throughput", "time_to_first_token")


def engine_files(results: Results) -> list[EngineFile]:
    """Return the files of a run, the parents' first, in the default scenario; none if all targets are in torch."""
    measured: dict[tuple[Key, str, str], Estimate] = {}
    for row in rows_of(results.engines):
        error = None if row.standard_error is None or math.isnan(row.standard_error) else row.standard_error
        key = Key(row.target, row.solution, row.model)
        measured[key, row.task, row.metric] = Estimate(row.value, error, row.n)
    order = {pair: i for i, pair in enumerate(results.children)}
    keys = sorted(dict.fromkeys(key for key, _, _ in measured), key=lambda key: order.get(key[:2], -1))
    return [_file(results, key, measured) for key in keys]


def _file(results: Results, key: Key, measured: dict[tuple[Key, str, str], Estimate]) -> EngineFile:
    scenario = results.settings.default_scenario

    def value(metric: str, task: str = scenario) -> Any:
        return measured.get((key, task, metric))

    engine = _engine_of(results, key)
    size, first = value("bytes", "file"), f"{SPEEDS[0]}_at_"
    batches = [m.removeprefix(first) for k, task, m in measured if (k, task) == (key, scenario) and m.startswith(first)]
    return EngineFile(
        engine,
        solution_name(results, key.target, key.solution) if key.target else FILES.get(key.model, key.model),
        size.value / 1e6 if size else None,
        value("kl", HELDOUT),
        predicted(results, key.target, key.solution, "speedup"),
        Estimate(1.0, 0.0) if not key.target and key.model == REFERENCES[engine] else value(SPEEDUP),
        tuple(value(metric) for metric in SPEEDS),
        {int(batch): tuple(value(f"{metric}_at_{batch}") for metric in SPEEDS) for batch in batches},
    )


def _engine_of(results: Results, key: Key) -> str:
    """Return the engine of a file: its target's, or of the parent's the one that has such files."""
    if key.target:
        return results.settings.engines.get(key.target, LLAMA_CPP)
    return LLAMA_CPP if key.model in FILES else VLLM


def without_empty(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return heads and rows without the columns of which no row has a value."""
    kept = [i for i in range(len(heads)) if any(row[i] != MISSING for row in rows)]
    return [heads[i] for i in kept], [[row[i] for i in kept] for row in rows]
