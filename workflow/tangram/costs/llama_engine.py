"""Measure the speed of subblocks, LM heads and whole models in llama.cpp, on CPUs.

A cost is a weighted sum of the times of files of random weights (`llama_stack`): that of a subblock is the slope
between two stacks of its copies; that of the head is the difference between a full and a tiny vocabulary; the rest of
the model is the intercept of the parent's FFN stacks. Stacks for decode are larger than the processor's caches, and
every file is loaded several times, from copies of its own, because decoding at batch 1 differs by 5-7 % with the pages
where the weights are. All files of a job are timed round-robin.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.blocks.base import GGUF_PRECISIONS, HEAD, KINDS, PARENT, Kind, Variant
from tangram.config import Costs, Scenario
from tangram.costs import calibration
from tangram.costs.llama_layers import Layer, pack, stubs
from tangram.costs.llama_passes import Pass
from tangram.costs.llama_stack import Sizes, bytes_of, layers_of, parts_of, sizes_of, write
from tangram.costs.measurement import MODEL, cost_row, precise
from tangram.llama_cpp import Model
from tangram.models.families import Shape, shape_of
from tangram.timing import interleaved

ENGINE = "llama.cpp"
COPIES = {"prefill": (8, 8), "decode": (8, 96)}  # bounds of the copies in the larger stack; a prefill need not be long
LOADS = {"prefill": 1, "decode": 3}
TINY_VOCABULARY = 32


@dataclass(frozen=True)
class File:
    """A file of random weights to time.

    Attributes:
        layers: its layers behind the first one.
        vocabulary: number of tokens.
        head: type of the LM head.
        first: the first layer; None for one with the parent's attention in float32.
    """

    layers: tuple[Layer, ...] = ()
    vocabulary: int = TINY_VOCABULARY
    head: str | None = None
    first: Layer | None = None


Sum = dict[File, float]  # a cost in one phase: the sum of the files' seconds with these weights


def added(*terms: tuple[float, Sum]) -> Sum:
    """Return the weighted sum of sums."""
    total: Sum = {}
    for factor, term in terms:
        for file, weight in term.items():
            total[file] = total.get(file, 0.0) + factor * weight
    return {file: weight for file, weight in total.items() if weight}


def slope(layers: tuple[Layer, ...], copies: int) -> Sum:
    """Return the cost of layers: the slope between stacks of ``copies`` and of half as many copies."""
    half = copies // 2
    return {File(layers * copies): 1 / (copies - half), File(layers * half): -1 / (copies - half)}


@dataclass(frozen=True)
class Timed:
    """Something to time: its cost by phase, and its sizes."""

    sums: dict[str, Sum]
    sizes: Sizes


STUB = (Layer(),)
EMBEDDING = "f16"  # its type in a child whose head has a type of llama.cpp's (`export/gguf.py`)
NOTHING = Sizes(0, 0, 0)


def _subblock(kind: Kind, variant: str, costs: Costs, shape: Shape) -> Timed:
    """Return the cost of a subblock in a layer whose other subblock is the parent's, with the stubs that it needs."""
    parts = parts_of(kind, variant, shape)
    layers = tuple(pack(parts))
    other = parts_of("ffn" if kind == "attention" else "attention", PARENT, shape)
    needed = stubs([*parts, *other] if kind == "attention" else [*other, *parts])
    further = needed - stubs(parts)  # -1 for an attention, whose stack has stubs
    sizes = Sizes(*(a + further * b for a, b in zip(sizes_of(layers, shape), sizes_of(STUB, shape), strict=True)))
    sums = {}
    for phase, (least, most) in COPIES.items():
        copies = min(max(math.ceil(costs.stack_megabytes * 1e6 / max(1, sizes.parameter_bytes)), least), most)
        sums[phase] = added((1.0, slope(layers, copies) if layers else {}), (further, slope(STUB, least)))
    return Timed(sums, sizes)


def _head(variant: str, costs: Costs, shape: Shape) -> Timed:
    """Return the cost of an LM head; for decode, other layers empty the processor's caches between its passes."""
    precision = Variant.parse(variant).precision
    ffn = tuple(pack(parts_of("ffn", PARENT, shape)))
    copies = math.ceil(costs.stack_megabytes * 1e6 / 2 / sizes_of(ffn, shape).parameter_bytes)
    sums = {
        phase: {File(filler, shape.vocabulary, precision): 1.0, File(filler, head=precision): -1.0}
        for phase, filler in (("prefill", ()), ("decode", ffn * copies))
    }
    matrix = shape.hidden * shape.vocabulary
    weights = 0 if shape.tied_head and variant == PARENT else matrix
    stored = bytes_of(weights, precision)
    if precision not in GGUF_PRECISIONS:  # the embedding has the run's dtype, not that of `_rest`
        stored += bytes_of(matrix, None) - bytes_of(matrix, EMBEDDING)
    return Timed(sums, Sizes(weights, stored, 0))


def _rest(shape: Shape) -> Timed:
    """Return the cost of embedding and final norm: a model's time without its only layer, which is the first one."""
    attention = tuple(pack(parts_of("attention", PARENT, shape)))
    sums = {phase: added((1.0, {File(): 1.0}), (-1.0, slope(attention, least))) for phase, (least, _) in COPIES.items()}
    weights = shape.hidden * shape.vocabulary
    return Timed(sums, Sizes(weights + shape.hidden, bytes_of(weights, EMBEDDING) + bytes_of(shape.hidden, None), 0))


def _whole(architecture: Architecture, shape: Shape) -> Timed:
    """Return a whole model."""
    first, *others = layers_of(architecture, shape)
    precision = Variant.parse(architecture.head).precision
    return Timed({phase: {File(tuple(others), shape.vocabulary, precision, first): 1.0} for phase in COPIES}, NOTHING)


def cost_of(kind: str, variant: str, costs: Costs, shape: Shape) -> Timed:
    """Return the cost of one variant of a kind."""
    if kind == MODEL:
        return _rest(shape)
    return _head(variant, costs, shape) if kind == HEAD else _subblock(kind, variant, costs, shape)  # type: ignore[arg-type]


class Loaded(ExitStack):
    """The loaded files of a job, which are freed at its end.

    Args:
        shape: the parent's sizes.
        positions: number of positions of the models.
    """

    def __init__(self, shape: Shape, positions: int):
        super().__init__()
        self._shape, self._positions = shape, positions
        self._folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="tangram-")))
        self._models: dict[tuple[File, int], Model] = {}

    def model(self, file: File, load: int) -> Model:
        """Return one of several loads of a file; each has pages of its own."""
        if (file, load) not in self._models:
            path = self._folder / "model.gguf"
            first = file.first or Layer(*parts_of("attention", PARENT, self._shape))
            write(path, [first, *file.layers], self._shape, file.vocabulary, self._positions, file.head)
            self._models[file, load] = self.enter_context(Model(path))
            path.unlink()  # the loaded model keeps its pages
        return self._models[file, load]


def _rounds(
    timed: Mapping[str, Timed], phase: str, passes: Mapping[tuple[File, int], Pass], repeats: int
) -> dict[str, list[float]]:
    """Time all files round-robin; return each cost in every round, in seconds per prefill or decode step."""
    functions: dict[Any, Pass] = dict(passes)
    samples: dict[Any, list[float]] = interleaved(functions, repeats, warmup=1)
    loads = LOADS[phase]

    def cost(parts: Sum, sample: int) -> float:
        seconds = [
            weight * samples[file, load][sample] / passes[file, load].steps
            for file, weight in parts.items()
            for load in range(loads)
        ]
        return sum(seconds) / loads

    return {name: [cost(t.sums[phase], i) for i in range(repeats)] for name, t in timed.items()}


@contextmanager
def _passes(
    timed: Mapping[str, Timed], phase: str, loaded: Loaded, scenario: Scenario, batch: int
) -> Iterator[dict[tuple[File, int], Pass]]:
    """Prepare the passes of all loads of all files."""
    prepare = Pass.prefill if phase == "prefill" else Pass.decode
    passes = {
        (file, load): prepare(loaded.model(file, load), scenario, batch, torch.get_num_threads())
        for file in {file: None for t in timed.values() for file in t.sums[phase]}
        for load in range(LOADS[phase])
    }
    try:
        yield passes
    finally:
        for one in passes.values():
            one.close()


def _precise_samples(
    timed: Mapping[str, Timed], phase: str, passes: Mapping[tuple[File, int], Pass], costs: Costs
) -> dict[str, list[float]]:
    """Time the parent's subblock and a variant until `costs.interval` or `costs.max_repeats` is reached."""
    samples: dict[str, list[float]] = {name: [] for name in timed}
    while len(samples[PARENT]) < costs.max_repeats:
        for name, more in _rounds(timed, phase, passes, costs.repeats).items():
            samples[name] += more
        if precise([samples], costs):
            break
    return samples


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
    """Time one variant of a subblock and the parent's in float32 round-robin, as `torch_engine.measure`.

    Returns:
        Rows of `tables.COSTS`. The costs of a subblock include the stubs that it needs beside the parent's other one:
        a no-op instead of an FFN costs a stub, a no-op instead of an attention nothing.

    Raises:
        TangramError: llama.cpp is not installed, or has no such subblock.
    """
    shape = shape_of(parent)
    timed = {name: cost_of(kind, name, costs, shape) for name in dict.fromkeys((PARENT, variant))}
    rows = []
    with Loaded(shape, _positions(scenarios)) as loaded:
        for name, batch in progress([(name, batch) for name, s in scenarios.items() for batch in s.batch_sizes]):
            for phase in COPIES:
                with _passes(timed, phase, loaded, scenarios[name], batch) as passes:
                    seconds = _precise_samples(timed, phase, passes, costs)
                row = {"engine": ENGINE, "device": device, "scenario": name, "phase": phase, "batch": batch}
                rows.append(cost_row(seconds, kind, variant, **row, **timed[variant].sizes._asdict()))
    return rows


def _positions(scenarios: Mapping[str, Scenario]) -> int:
    return max(scenario.prefill + scenario.generate for scenario in scenarios.values())


def calibration_architectures(library: Mapping[str, Sequence[str]], num_layers: int) -> dict[str, Architecture]:
    """Return the models of `calibration.calibration_architectures`, and the parent in each type that all kinds have."""
    architectures = calibration.calibration_architectures(library, num_layers)
    everywhere = set.intersection(*(set(library.get(kind, ())) for kind in (*KINDS, HEAD)))
    for variant in sorted(name for name in everywhere if Variant.parse(name).family == PARENT):
        architectures[variant] = Architecture((LayerChoice(variant, variant),) * num_layers, variant)
    return architectures


def measure_whole(
    parent: str | Path,
    architectures: Mapping[str, Architecture],
    costs: Costs,
    scenarios: Mapping[str, Scenario],
    device: str,
    dtype: str,
    progress: Callable[[list], Any] = iter,
) -> dict[tuple[str, str, int], dict[str, float]]:
    """Time whole models round-robin, with all of them in memory at once; see `torch_engine.measure_whole`."""
    shape, seconds = shape_of(parent), {}
    models = {name: _whole(architecture, shape) for name, architecture in architectures.items()}
    with Loaded(shape, _positions(scenarios)) as loaded:
        for name, batch in progress([(name, batch) for name, s in scenarios.items() for batch in s.batch_sizes]):
            for phase in COPIES:
                with _passes(models, phase, loaded, scenarios[name], batch) as passes:
                    samples = _rounds(models, phase, passes, costs.calibration_repeats)
                seconds[name, phase, batch] = {n: statistics.median(values) for n, values in samples.items()}
    return seconds
