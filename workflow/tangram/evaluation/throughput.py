"""Rates of timed passes, as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tangram.config import Scenario
from tangram.timing import median_and_error


def speeds(prefill: Sequence[float], decode: Sequence[float], scenario: Scenario, batch: int) -> dict[str, list[float]]:
    """Return tokens per second in every round, in all and by phase, of the seconds of prefills and of decode steps."""
    prompt, generated = batch * scenario.prefill, batch * scenario.generate
    return {
        "throughput": [(prompt + generated) / (p + d) for p, d in zip(prefill, decode, strict=True)],
        "prefill_throughput": [prompt / p for p in prefill],
        "decode_throughput": [generated / d for d in decode],
    }


def median_rows(model: str, name: str, samples: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Return a model's medians with standard errors as rows of `tables.EVALUATION`; n is the number of rounds."""
    rows = []
    for metric, values in samples.items():
        value, error = median_and_error(values)
        row = {"model": model, "task": name, "metric": metric, "value": value, "standard_error": error}
        rows.append({**row, "n": len(values)})
    return rows
