"""Speed of whole models: all models of a run in one job, round-robin, as a machine's speed changes from job to job."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from tangram.config import Scenario
from tangram.timing import median_and_error


class Seconds(NamedTuple):
    """Seconds of a prefill and of all decode steps."""

    prefill: float
    decode: float


Key = TypeVar("Key")
Place = tuple[str, int]  # a scenario's name and a batch size
Name = tuple[str, str, str]  # target, solution and model; the first two are empty for the parent


def time_in_rounds(
    models: Mapping[Key, Callable[[], Mapping[Place, Seconds]]], repeats: int, seed: int
) -> dict[Key, dict[Place, list[Seconds]]]:
    """Time models round-robin, in an order that changes from round to round.

    Args:
        models: functions that time a model in all scenarios, by the models' names.
        repeats: number of rounds.
        seed: seed of the orders.
    """
    order, shuffle = list(models), random.Random(seed).shuffle
    samples: dict[Key, dict[Place, list[Seconds]]] = {name: {} for name in models}
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            for place, seconds in models[name]().items():
                samples[name].setdefault(place, []).append(seconds)
    return samples


def speed_rows(
    samples: Mapping[Name, Mapping[Place, Sequence[Seconds]]],
    scenarios: Mapping[str, Scenario],
    references: Mapping[str, Name],
) -> list[dict[str, Any]]:
    """Return the speed of all models in all scenarios, each at the batch size of its largest throughput.

    A scenario with several batch sizes, as a server with so many requests at once, has the rates at each of them, too:
    metrics such as ``throughput_at_8``.

    Throughput is ``batch * (prefill + generate) / (seconds of the prefill + seconds of all decode steps)``. A speed-up
    is the ratio of the throughputs of two models in the same round.

    Args:
        samples: results of `time_in_rounds`.
        scenarios: the scenarios by name.
        references: by metric, the model over which this speed-up is measured.

    Returns:
        Rows of `tables.SPEEDS`: medians over rounds with standard errors.
    """
    rows = []
    for scenario_name, scenario in scenarios.items():
        best = {name: _at_best_batch(places, scenario_name, scenario) for name, places in samples.items()}
        for name, metrics in best.items():
            for metric, reference in references.items():
                if reference in best and name != reference:
                    pairs = zip(metrics["throughput"], best[reference]["throughput"], strict=True)
                    metrics[metric] = [own / other for own, other in pairs]
            if len(scenario.batch_sizes) > 1:
                metrics |= _at_every_batch(samples[name], scenario_name, scenario)
            for metric, values in metrics.items():
                value, error = median_and_error(values)
                row = dict(zip(("target", "solution", "model"), name, strict=True))
                measured = {"value": value, "standard_error": error, "n": len(values)}
                rows.append({**row, "task": scenario_name, "metric": metric, **measured})
    return rows


def _at_best_batch(
    places: Mapping[Place, Sequence[Seconds]], scenario_name: str, scenario: Scenario
) -> dict[str, list[float]]:
    """Return rates (tokens per second) and times (seconds) in every round, at the batch size of largest throughput."""
    by_batch = [_metrics(places[scenario_name, batch], scenario, batch) for batch in scenario.batch_sizes]
    return max(by_batch, key=lambda metrics: median_and_error(metrics["throughput"])[0])


def _at_every_batch(
    places: Mapping[Place, Sequence[Seconds]], scenario_name: str, scenario: Scenario
) -> dict[str, list[float]]:
    return {
        f"{metric}_at_{batch}": values
        for batch in scenario.batch_sizes
        for metric, values in _metrics(places[scenario_name, batch], scenario, batch).items()
    }


def _metrics(seconds: Sequence[Seconds], scenario: Scenario, batch: int) -> dict[str, list[float]]:
    prompt, generated = batch * scenario.prefill, batch * scenario.generate
    return {
        "throughput": [(prompt + generated) / (s.prefill + s.decode) for s in seconds],
        "prefill_throughput": [prompt / s.prefill for s in seconds],
        "decode_throughput": [generated / s.decode for s in seconds],
        "time_to_first_token": [s.prefill for s in seconds],
    }
