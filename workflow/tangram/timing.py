"""Interleaved timing: alternatives are timed round-robin, so load drift affects all of them equally."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

MINIMUM_SECONDS = 0.02  # clock and scheduler dominate shorter samples
MEDIAN_EFFICIENCY = math.sqrt(math.pi / 2)  # standard error of a median over that of a mean, for normal samples


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 2,
    synchronize: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time functions round-robin (A B A B …) and return each one's samples, in seconds per call.

    A sample is the mean of so many calls that it lasts `MINIMUM_SECONDS` at the speed of the last warm-up call.

    Args:
        functions: the functions to time, by name.
        repeats: samples of each function.
        warmup: untimed calls of each function before the first sample, at least 1.
        synchronize: waits until the device has finished its work.
        clock: returns seconds.
    """

    def sample(function: Callable[[], object], calls: int) -> float:
        synchronize()
        start = clock()
        for _ in range(calls):
            function()
        synchronize()
        return (clock() - start) / calls

    calls = {}
    for name, function in functions.items():
        for _ in range(warmup):
            seconds = sample(function, 1)
        calls[name] = max(1, math.ceil(MINIMUM_SECONDS / max(seconds, 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            samples[name].append(sample(function, calls[name]))
    return samples


def interquartile_range(samples: Sequence[float]) -> float:
    """Return the distance between the interpolated quartiles."""
    lower, _, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return upper - lower


def median_and_error(samples: Sequence[float]) -> tuple[float, float]:
    """Return the median of at least two samples and its standard error, assuming a normal distribution."""
    error = MEDIAN_EFFICIENCY * statistics.stdev(samples) / math.sqrt(len(samples))
    return statistics.median(samples), error
