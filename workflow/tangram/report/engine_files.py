"""The files that llama.cpp runs: exported children and the parent in types that a user would take instead."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tangram.blocks.base import PARENT
from tangram.engines import LLAMA_CPP, PARENT_TYPES, REFERENCES
from tangram.report.data import HELDOUT, SPEEDUP, Results, rows_of
from tangram.report.estimates import Estimate, Key
from tangram.report.names import solution_name
from tangram.report.prediction import predicted


@dataclass(frozen=True)
class EngineFile:
    """One file.

    Attributes:
        name: display name.
        megabytes: its size; None if it was not evaluated.
        kl: KL of the engine's own logits from the parent in torch, nats per token.
        predicted: speed-up over the parent in F16 from the costs that were measured in the engine; None of the parent.
        speedup: the measured one.
        speeds: throughput, prefill throughput, decode throughput (tokens/s), and seconds to the first token.
        sweep: the same at each batch size, if the scenario has several.
    """

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
SPEEDS = ("throughput", "prefill_throughput", "decode_throughput", "time_to_first_token")


def engine_files(results: Results) -> list[EngineFile]:
    """Return the files of a run, the parent's first, in the default scenario; none if no target has the engine."""
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

    size, first = value("bytes", "file"), f"{SPEEDS[0]}_at_"
    batches = [m.removeprefix(first) for k, task, m in measured if (k, task) == (key, scenario) and m.startswith(first)]
    return EngineFile(
        solution_name(results, key.target, key.solution) if key.target else FILES[key.model],
        size.value / 1e6 if size else None,
        value("kl", HELDOUT),
        predicted(results, key.target, key.solution, "speedup"),
        Estimate(1.0, 0.0) if key.model == REFERENCES[LLAMA_CPP] else value(SPEEDUP),
        tuple(value(metric) for metric in SPEEDS),
        {int(batch): tuple(value(f"{metric}_at_{batch}") for metric in SPEEDS) for batch in batches},
    )
