"""The parts that the timers of all engines share: steps to time, when measurements end, columns of a row."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tangram.blocks.base import PARENT
from tangram.config import Costs, Scenario
from tangram.timing import interquartile_range, median_and_error

LAYER_CLASS = 0  # the supported families have one shape of layer (`Shape.of` refuses others)
MODEL = "model"  # the table's kind for embedding, mask, rotary angles and final norm
DECODE_STEPS = 4  # consecutive steps per sample, centered on the mean length of the cache
NORMAL_95 = 1.96  # half-width of the 95 % interval of a normal distribution, in standard errors
SHORTEST = 1e-9  # seconds; a difference of noisy times can be negative


def decode_window(scenario: Scenario) -> tuple[int, int]:
    """Return the tokens in the cache before the timed decode steps, and the number of these steps."""
    steps = min(DECODE_STEPS, scenario.generate)
    return scenario.prefill + (scenario.generate - steps) // 2, steps


def ratio_error(samples: Mapping[str, Sequence[float]], variant: str) -> tuple[float, float]:
    """Return the median ratio of a variant's seconds to the parent's in the same round, and its standard error."""
    if variant == PARENT or variant not in samples:
        return float(variant == PARENT), 0.0
    return median_and_error([v / max(p, SHORTEST) for v, p in zip(samples[variant], samples[PARENT], strict=True)])


def precise(phases: Iterable[Mapping[str, Sequence[float]]], costs: Costs) -> bool:
    """Return whether the 95 % intervals of all ratios to the parent's seconds are within `costs.interval`."""
    ratios = [ratio_error(samples, variant) for samples in phases for variant in samples]
    return all(NORMAL_95 * error <= costs.interval * ratio for ratio, error in ratios)


def cost_row(samples: Mapping[str, Sequence[float]], kind: str, variant: str, **others: Any) -> dict[str, Any]:
    """Return a row of `tables.COSTS`; a variant without samples, a no-op, costs nothing.

    Args:
        samples: seconds of one copy in every round, of the parent's subblock and of the variant.
        kind: the kind of subblock.
        variant: the variant.
        others: the other columns.
    """
    seconds = samples.get(variant, [0.0, 0.0])
    return {
        "layer_class": LAYER_CLASS,
        "kind": kind,
        "variant": variant,
        "seconds": max(SHORTEST if variant == PARENT else 0.0, statistics.median(seconds)),
        "seconds_spread": interquartile_range(seconds),
        "parent_seconds": max(SHORTEST, statistics.median(samples[PARENT])),
        "ratio_error": ratio_error(samples, variant)[1],
        **others,
    }
