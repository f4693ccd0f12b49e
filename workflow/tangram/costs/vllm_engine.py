"""Measure the speed of subblocks, LM heads and whole models in vLLM, by its own latency benchmark (`vllm_bench`).

A cost is a weighted sum of the times of models of random weights: that of a subblock is the slope between two stacks
of its copies behind one layer of the parent's attention; that of the head is the difference between a vocabulary and
its double; the rest of the model, with vLLM's own work per step, is the intercept. A prefill is a run that generates
one token; decode steps are what further tokens add to it. Each model runs in processes of its own, which take turns.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tangram.blocks.architecture import Architecture
from tangram.blocks.base import HEAD, PARENT, Variant
from tangram.config import Costs, Scenario
from tangram.costs.calibration import calibration_architectures as calibration_architectures  # part of the interface
from tangram.costs.llama_stack import Sizes
from tangram.costs.measurement import MODEL, cost_row, precise
from tangram.costs.vllm_bench import (
    BYTES,
    TOKENS,
    Bench,
    Layer,
    Stack,
    copies_of,
    layers_of,
    length_of,
    pack,
    parts_of,
    sizes_of,
    steps_of,
    write,
)
from tangram.engines import VLLM
from tangram.errors import TangramError
from tangram.models.families import Shape, shape_of

COPIES = (8, 96)  # bounds of the copies in the larger stack
PHASES = ("prefill", "decode")

Sum = dict[Stack, float]  # a cost: the sum of the stacks' seconds with these weights
Samples = dict[str, dict[str, list[float]]]  # seconds by phase and name


@dataclass(frozen=True)
class Timed:
    """Something to time: its cost, and its sizes."""

    parts: Sum
    sizes: Sizes


def slope(first: Layer, layers: tuple[Layer, ...], copies: int) -> Sum:
    """Return the cost of layers: the slope between stacks of ``copies`` and of half as many copies."""
    half = copies // 2
    return {
        Stack((first, *layers * copies)): 1 / (copies - half),
        Stack((first, *layers * half)): -1 / (copies - half),
    }


def _timed(kind: str, variant: str, costs: Costs, shape: Shape, dtype: str) -> Timed:
    """Return what to time of a variant."""
    attention = pack(parts_of("attention", PARENT, shape))
    vocabulary, precision = shape.vocabulary, Variant.parse(variant).precision
    weights = shape.hidden * vocabulary
    if kind == HEAD:
        stacks = {Stack(attention, 2 * vocabulary, precision): 1.0, Stack(attention, vocabulary, precision): -1.0}
        stored = 0 if shape.tied_head and variant == PARENT else weights
        scales = 4 * vocabulary if BYTES[precision or dtype] == 1 else 0
        return Timed(stacks, Sizes(stored, stored * BYTES[precision or dtype] + scales, 0))
    if kind == MODEL:
        # The fixed part: a model of one attention, without that and without the head, which the double has once more.
        alone = slope(attention[0], attention, COPIES[0])
        rest = {Stack(attention, vocabulary): 2.0, Stack(attention, 2 * vocabulary): -1.0}
        rest |= {stack: -weight for stack, weight in alone.items()}
        return Timed(rest, Sizes(weights + shape.hidden, (weights + shape.hidden) * BYTES[dtype], 0))
    layers = pack(parts_of(kind, variant, shape))  # type: ignore[arg-type]
    if not layers:
        return Timed({}, Sizes(0, 0, 0))
    copies = copies_of(layers, costs.stack_megabytes, shape, dtype, COPIES)
    return Timed(slope(attention[0], layers, copies), sizes_of(layers, shape, dtype))


class Models:
    """The configs of a job's models on disk, and their times.

    Args:
        parent: the parent's folder.
        bench: the benchmark.
        folder: where the configs are written.
        positions: largest number of tokens of a sequence.
    """

    def __init__(self, parent: str | Path, bench: Bench, folder: str | Path, positions: int):
        self._parent, self._bench, self._folder, self._positions = parent, bench, Path(folder), positions
        self._shape, self._folders = shape_of(parent), dict[Stack, Path]()

    def seconds(self, stack: Stack, scenario: Scenario, batch: int, repeats: int) -> dict[str, list[float]]:
        """Return the seconds of prefills and of decode steps of one model."""
        if stack not in self._folders:
            self._folders[stack] = self._folder / str(len(self._folders))
            write(self._folders[stack], stack, self._parent, self._positions)
        cache = sizes_of(stack.layers, self._shape, self._bench.dtype).kv_bytes_per_token * batch * length_of(scenario)
        one, all_tokens = (
            self._bench.latencies(self._folders[stack], scenario, batch, tokens, repeats, cache)
            for tokens in (1, 1 + steps_of(scenario))
        )
        prefill = statistics.median(one)
        return {"prefill": one, "decode": [(seconds - prefill) / steps_of(scenario) for seconds in all_tokens]}


def _round(timed: Mapping[str, Timed], models: Models, scenario: Scenario, batch: int, repeats: int) -> Samples:
    """Time every model once, in a process of its own per phase; return the seconds of each cost in every run."""
    seconds = {
        stack: models.seconds(stack, scenario, batch, repeats)
        for stack in {stack: None for one in timed.values() for stack in one.parts}
    }
    return {
        phase: {
            name: [sum(w * seconds[stack][phase][i] for stack, w in one.parts.items()) for i in range(repeats)]
            for name, one in timed.items()
        }
        for phase in PHASES
    }


def _precise_samples(
    timed: Mapping[str, Timed], models: Models, scenario: Scenario, batch: int, costs: Costs
) -> Samples:
    """Time the parent's subblock and a variant until `costs.interval` or `costs.max_repeats` is reached."""
    samples: Samples = {phase: {name: [] for name in timed} for phase in PHASES}
    while len(samples["decode"][PARENT]) < costs.max_repeats:
        for phase, more in _round(timed, models, scenario, batch, costs.repeats).items():
            for name, seconds in more.items():
                samples[phase][name] += seconds
        if precise(samples.values(), costs):
            break
    return samples


def _models(parent: str | Path, scenarios: Mapping[str, Scenario], device: str, dtype: str, folder: str) -> Models:
    shape = shape_of(parent)
    if shape.vocabulary < TOKENS:
        raise TangramError(
            f"vLLM's latency benchmark draws tokens below {TOKENS}, but the parent's vocabulary has "
            f"{shape.vocabulary}; set targets.<name>.engine: torch"
        )
    return Models(
        parent, Bench(device, dtype, torch.get_num_threads()), folder, max(map(length_of, scenarios.values()))
    )


def measure(
    parent: str | Path,
    kind: str,
    variant: str,
    costs: Costs,
    scenarios: Mapping[str, Scenario],
    device: str,
    dtype: str,
    progress: Callable[[list], Any] = iter,
) -> list[dict[str, Any]]:
    """Time one variant of a subblock and the parent's, as `torch_engine.measure`.

    Returns:
        Rows of `tables.COSTS`.

    Raises:
        TangramError: vLLM is not installed, fails, or has no such subblock.
    """
    shape, rows = shape_of(parent), []
    timed = {name: _timed(kind, name, costs, shape, dtype) for name in dict.fromkeys((PARENT, variant))}
    with tempfile.TemporaryDirectory(prefix="tangram-") as folder:
        models = _models(parent, scenarios, device, dtype, folder)
        for name, batch in progress([(name, batch) for name, s in scenarios.items() for batch in s.batch_sizes]):
            for phase, seconds in _precise_samples(timed, models, scenarios[name], batch, costs).items():
                row = {"engine": VLLM, "device": device, "scenario": name, "phase": phase, "batch": batch}
                rows.append(cost_row(seconds, kind, variant, **row, **timed[variant].sizes._asdict()))
    return rows


def measure_whole(
    parent: str | Path,
    architectures: Mapping[str, Architecture],
    costs: Costs,
    scenarios: Mapping[str, Scenario],
    device: str,
    dtype: str,
    progress: Callable[[list], Any] = iter,
) -> dict[tuple[str, str, int], dict[str, float]]:
    """Time whole models one after the other; see `torch_engine.measure_whole`."""
    shape, seconds = shape_of(parent), {}
    stacks = {
        name: Stack(layers_of(architecture, shape), shape.vocabulary, Variant.parse(architecture.head).precision)
        for name, architecture in architectures.items()
    }
    timed = {name: Timed({stack: 1.0}, Sizes(0, 0, 0)) for name, stack in stacks.items()}
    with tempfile.TemporaryDirectory(prefix="tangram-") as folder:
        models = _models(parent, scenarios, device, dtype, folder)
        for name, batch in progress([(name, batch) for name, s in scenarios.items() for batch in s.batch_sizes]):
            samples = _round(timed, models, scenarios[name], batch, costs.calibration_repeats)
            for phase in PHASES:
                seconds[name, phase, batch] = {n: statistics.median(v) for n, v in samples[phase].items()}
    return seconds
