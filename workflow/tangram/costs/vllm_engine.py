"""Measure the speed of subblocks, LM heads and whole models in vLLM, by its own latency benchmark (`vllm_bench`).

A cost is a weighted sum of the times of models of random weights: that of a subblock is the slope between two stacks
of its copies behind one layer of the parent's attention; that of the head is the difference between a vocabulary and
its double; the rest of the model, with vLLM's own work per step, is the intercept. A prefill is a run that generates
one token; decode steps are what further tokens add to it. Every measurement starts vLLM anew with each model in turn,
so that differences between its processes are part of the interval.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tangram import vllm
from tangram.blocks.architecture import Architecture
from tangram.blocks.base import HEAD, PARENT, Variant
from tangram.config import Costs, Scenario
from tangram.costs.calibration import calibration_architectures as calibration_architectures  # part of the interface
from tangram.costs.llama_stack import Sizes
from tangram.costs.measurement import MODEL, cost_row, precise
from tangram.costs.vllm_bench import (
    BYTES,
    Bench,
    Layer,
    Place,
    Stack,
    copies_of,
    layers_of,
    length_of,
    pack,
    parts_of,
    places_of,
    sizes_of,
    write,
)
from tangram.engines import VLLM
from tangram.errors import TangramError
from tangram.models.families import Shape, shape_of
from tangram.vllm import TOKENS

COPIES = (8, 96)  # bounds of the copies in the larger stack
PHASES = ("prefill", "decode")

Sum = dict[Stack, float]  # a cost: the sum of the stacks' seconds with these weights
Samples = dict[Place, dict[str, dict[str, list[float]]]]  # seconds by place, phase and name


@dataclass(frozen=True)
class Timed:
    """Something to time: its cost, and its sizes."""

    parts: Sum
    sizes: Sizes


def slope(first: Layer, layers: tuple[Layer, ...], copies: int) -> Sum:
    """Return the cost of layers: the slope between stacks of ``copies`` and of half as many copies."""
    half = copies // 2
    return {
        Stack((first, *layers * copies), TOKENS): 1 / (copies - half),
        Stack((first, *layers * half), TOKENS): -1 / (copies - half),
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
    """The configs of a job's models on disk, which the benchmark times.

    Args:
        parent: the parent's folder.
        bench: the benchmark.
        folder: where the configs are written.

    Raises:
        TangramError: the benchmark cannot run the parent.
    """

    def __init__(self, parent: str | Path, bench: Bench, folder: str | Path):
        self._parent, self._bench, self._folder = parent, bench, Path(folder)
        self._shape, self._folders = shape_of(parent), dict[Stack, Path]()
        self._positions = max(map(length_of, bench.scenarios.values()))
        if reason := vllm.vocabulary_refusal(self._shape.vocabulary):
            raise TangramError(reason)

    def sample(self, timed: Mapping[str, Timed], samples: Samples) -> None:
        """Start vLLM with every model in turn, and append the seconds of each cost."""
        stacks = {stack: None for one in timed.values() for stack in one.parts}
        times = {stack: self._bench.times(self._written(stack), self._kv_bytes(stack)) for stack in stacks}
        for place, phases in samples.items():
            for phase, by_name in phases.items():
                for name, one in timed.items():
                    seconds = sum(weight * times[stack][place][phase] for stack, weight in one.parts.items())
                    by_name[name].append(seconds)

    def _written(self, stack: Stack) -> Path:
        if stack not in self._folders:
            self._folders[stack] = self._folder / str(len(self._folders))
            write(self._folders[stack], stack, self._parent, self._positions)
        return self._folders[stack]

    def _kv_bytes(self, stack: Stack) -> int:
        return sizes_of(stack.layers, self._shape, self._bench.dtype).kv_bytes_per_token


def no_samples(places: Iterable[Place], names: Iterable[str]) -> Samples:
    """Return empty lists for the seconds of everything."""
    names = list(names)
    return {place: {phase: {name: [] for name in names} for phase in PHASES} for place in places}


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
    """Time one variant of a subblock and the parent's in turns, as `torch_engine.measure`.

    Measurements end when `costs.interval` is reached in all scenarios at all batch sizes, or `costs.max_repeats`.

    Returns:
        Rows of `tables.COSTS`.

    Raises:
        TangramError: vLLM is not installed, fails, or has no such subblock.
    """
    shape = shape_of(parent)
    timed = {name: _timed(kind, name, costs, shape, dtype) for name in dict.fromkeys((PARENT, variant))}
    samples = no_samples(places_of(scenarios), timed)
    with tempfile.TemporaryDirectory(prefix="tangram-") as folder:
        models = Models(parent, Bench(scenarios, device, dtype, torch.get_num_threads()), folder)
        for number in progress(list(range(1, costs.max_repeats + 1))):
            models.sample(timed, samples)
            if number >= costs.repeats and all(precise(phases.values(), costs) for phases in samples.values()):
                break
    sizes = timed[variant].sizes._asdict()
    return [
        cost_row(seconds, kind, variant, engine=VLLM, device=device, scenario=name, phase=phase, batch=batch, **sizes)
        for (name, batch), phases in samples.items()
        for phase, seconds in phases.items()
    ]


def measure_whole(
    parent: str | Path,
    architectures: Mapping[str, Architecture],
    costs: Costs,
    scenarios: Mapping[str, Scenario],
    device: str,
    dtype: str,
    progress: Callable[[list], Any] = iter,
) -> dict[tuple[str, str, int], dict[str, float]]:
    """Time whole models in turns; see `torch_engine.measure_whole`."""
    shape = shape_of(parent)
    stacks = {
        name: Stack(layers_of(architecture, shape), shape.vocabulary, Variant.parse(architecture.head).precision)
        for name, architecture in architectures.items()
    }
    timed = {name: Timed({stack: 1.0}, Sizes(0, 0, 0)) for name, stack in stacks.items()}
    samples = no_samples(places_of(scenarios), timed)
    with tempfile.TemporaryDirectory(prefix="tangram-") as folder:
        models = Models(parent, Bench(scenarios, device, dtype, torch.get_num_threads()), folder)
        for _ in progress(list(range(costs.calibration_repeats))):
            models.sample(timed, samples)
    return {
        (name, phase, batch): {model: statistics.median(seconds) for model, seconds in by_model.items()}
        for (name, batch), phases in samples.items()
        for phase, by_model in phases.items()
    }
