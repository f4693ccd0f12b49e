"""Sections `scenarios` and `costs`: inference workloads, and the timing of pieces."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tangram.config.base import Section, Unique


class Scenario(Section):
    """An inference workload that is timed and constrained."""

    prefill: int = Field(gt=0, description="Prompt tokens per sequence.")
    generate: int = Field(gt=0, description="Generated tokens per sequence.")
    batch_sizes: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Unique] = Field(
        min_length=1,
        description="Batch sizes to measure and to choose from: the solver solves for every combination of one size "
        "per constrained scenario and keeps the best; a limit on memory takes out those that do not fit.",
    )


class Costs(Section):
    """Measured time and memory of each piece."""

    repeats: int = Field(5, ge=3, description="Interleaved measurements per subblock; the median counts.")
    interval: float = Field(
        0.02,
        gt=0,
        description="Half-width of the 95 % interval of a piece's time relative to the parent's, at which repeated "
        "measurements end.",
    )
    max_repeats: int = Field(15, ge=3, description="Measurements after which they end in any case.")
    stack_megabytes: int = Field(
        128, gt=0, description="Weights of the subblock's copies that timing cycles through, so that caches miss."
    )
    calibration_repeats: int = Field(3, ge=3, description="Interleaved measurements per whole assembled model.")
