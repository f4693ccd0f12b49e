"""Models of random weights for timing in vLLM, folders that hold a config alone; and vLLM's own latency benchmark.

`vllm bench latency` runs in a process of its own, which loads one model, on a CPU without compiling it. For stacks vLLM
draws the weights at random (`--load-format dummy`).
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tangram import vllm
from tangram.blocks.architecture import Architecture
from tangram.blocks.base import HEAD, Kind
from tangram.config import Scenario
from tangram.costs import llama_stack
from tangram.costs.llama_layers import Part
from tangram.costs.llama_stack import Sizes
from tangram.engines import VLLM
from tangram.errors import TangramError
from tangram.models.decilm_config import CODE, CODE_FILE, decilm_config
from tangram.models.families import Shape, read_config, shape_of

WARMUP = 2  # untimed runs of every workload
RUNS = 3  # timed ones, of which the median counts
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "fp8": 1}

Layer = tuple[Part | None, Part | None]


def parts_of(kind: Kind, variant: str, shape: Shape) -> list[Part]:
    """Return a variant as parts: one, or none for a no-op; every linear map has a bias.

    Raises:
        TangramError: vLLM has no such subblock.
    """
    parts = llama_stack.parts_of(kind, variant, shape, VLLM)
    if any(part.heads for part in parts):
        raise TangramError(f"{VLLM} has no {kind} '{variant}'; leave it out of targets with engine: {VLLM}")
    return [replace(part, form="linear") if part.form == "unbiased" else part for part in parts]


def pack(parts: Sequence[Part]) -> tuple[Layer, ...]:
    """Return layers of subblocks, as `export.decilm.pack`."""
    layers: list[Layer] = []
    for part in parts:
        if part.form == "attention":
            layers.append((part, None))
        elif layers and layers[-1][1] is None:
            layers[-1] = (layers[-1][0], part)
        else:
            layers.append((None, part))
    return tuple(layers)


def layers_of(architecture: Architecture, shape: Shape) -> tuple[Layer, ...]:
    """Return a child's layers; the first gets an attention of one KV head if it has none.

    Raises:
        TangramError: vLLM has no such subblock.
    """
    pieces = [(kind, variant) for _, kind, variant in architecture.pieces() if kind != HEAD]
    layers = pack([part for kind, variant in pieces for part in parts_of(kind, variant, shape)])  # type: ignore[arg-type]
    if layers and layers[0][0] is None:
        return ((Part("attention", 1), layers[0][1]), *layers[1:])
    return layers


def sizes_of(layers: Sequence[Layer], shape: Shape, dtype: str) -> Sizes:
    """Return the sizes of layers as the folder stores them: a linear map as an FFN with a constant gate."""
    weights = stored = cache = 0
    hidden, queries = shape.hidden, shape.heads * shape.head_dim
    for part in [part for layer in layers for part in layer if part is not None]:
        element, precise = BYTES[part.precision or dtype], BYTES[dtype]
        if part.form == "attention":
            keys = part.size * shape.head_dim
            matrices, rows, floats = 2 * hidden * (queries + keys), queries + 2 * keys + hidden, hidden
            cache += 2 * keys * precise
        elif part.form == "linear":
            matrices, rows, floats = 2 * hidden * hidden, 2 * hidden, hidden * hidden + 4 * hidden
        else:
            matrices, rows, floats = 3 * hidden * part.size, 2 * part.size + hidden, hidden
        scales = rows if element == 1 else 0
        weights += matrices + floats + scales
        stored += matrices * element + floats * precise + 4 * scales
    return Sizes(weights, stored, cache)


@dataclass(frozen=True)
class Stack:
    """A model to time.

    Attributes:
        layers: its layers; the first has an attention.
        vocabulary: number of tokens.
        head: precision of the LM head; None for the run's dtype.
    """

    layers: tuple[Layer, ...]
    vocabulary: int
    head: str | None = None


def write(folder: str | Path, stack: Stack, parent: str | Path, positions: int) -> None:
    """Write a model's config with the parent's sizes, and the code that reads it."""
    base = read_config(parent).to_dict()
    for key in ("per_layer_config", "auto_map", "quantization_config"):
        base.pop(key, None)
    tokens = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    base |= {"vocab_size": stack.vocabulary, "tie_word_embeddings": False, **tokens}
    base["max_position_embeddings"] = max(positions, base["max_position_embeddings"])
    biased = bool(base.get("mlp_bias")) or any(ffn is not None and ffn.form == "linear" for _, ffn in stack.layers)
    config = decilm_config(base, shape_of(parent), stack.layers, biased, stack.head)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / CODE_FILE).write_text(CODE, encoding="utf-8")


Place = tuple[str, int]  # a scenario's name and a batch size
Times = dict[Place, dict[str, float]]  # seconds of a prefill and of a decode step, by phase


def places_of(scenarios: Mapping[str, Scenario]) -> list[Place]:
    """Return the places of all scenarios."""
    return [(name, batch) for name, scenario in scenarios.items() for batch in scenario.batch_sizes]


@dataclass(frozen=True)
class Bench:
    """The benchmark's settings, which all models of a job share.

    Attributes:
        scenarios: the scenarios by name.
        device: ``'cpu'`` or ``'cuda'``: that of the installed vLLM.
        dtype: ``'float32'`` or ``'bfloat16'``.
        threads: threads on a CPU.
        random: vLLM draws the weights, and reads none.
        command: the words that start the benchmark.
    """

    scenarios: Mapping[str, Scenario]
    device: str
    dtype: str
    threads: int = 1
    random: bool = True
    command: Sequence[str] = field(default_factory=lambda: vllm.latency_benchmark() or ())

    def model_arguments(self, model: str | Path) -> list[str]:
        """Return the words that say how vLLM loads a model."""
        return [
            *("--model", str(model), "--trust-remote-code", "--dtype", self.dtype),
            *(["--load-format", "dummy"] if self.random else []),
            *("--skip-tokenizer-init", "--disable-detokenize"),
            *("--max-model-len", str(max(map(length_of, self.scenarios.values())))),
            # Compiling takes minutes on a CPU; a GPU runs as it serves, with compiled kernels and CUDA graphs.
            *(["--enforce-eager"] if self.device == "cpu" else []),
        ]

    def run_arguments(self, output: Path) -> list[list[str]]:
        """Return the words of each run: of every place, the generation of one token and that of all.

        Args:
            output: folder of the runs' results, `0.json`, `1.json`, ...
        """
        runs = [
            (self.scenarios[name].prefill, tokens, batch)
            for name, batch in places_of(self.scenarios)
            for tokens in (1, 1 + steps_of(self.scenarios[name]))
        ]
        return [
            [
                *("--input-len", str(prompt), "--output-len", str(tokens), "--batch-size", str(batch)),
                *("--num-iters-warmup", str(WARMUP), "--num-iters", str(RUNS)),
                *("--output-json", str(output / f"{index}.json")),
            ]
            for index, (prompt, tokens, batch) in enumerate(runs)
        ]

    def environment(self, kv_bytes_per_token: int) -> dict[str, str]:
        """Return the environment of vLLM's processes, on a CPU with room for two KV caches of the largest place.

        Args:
            kv_bytes_per_token: bytes of the KV cache per token and sequence.
        """
        if self.device != "cpu":
            return vllm.environment()
        tokens = max(length_of(scenario) * max(scenario.batch_sizes) for scenario in self.scenarios.values())
        return {
            **vllm.environment(),
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, math.ceil(2 * kv_bytes_per_token * tokens / 2**30))),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores_of(self.threads))),
            "OMP_NUM_THREADS": str(self.threads),
        }

    def times(self, model: str | Path, kv_bytes_per_token: int) -> Times:
        """Start vLLM with a model, and time all scenarios at all of their batch sizes.

        A prefill is a run that generates one token; the further tokens of the other run are decode steps.

        Raises:
            TangramError: vLLM is not installed, or failed.
        """
        if not self.command:
            raise TangramError(f"vLLM is not installed; {vllm.INSTALL}")
        with tempfile.TemporaryDirectory(prefix="tangram-") as folder:
            runs = self.run_arguments(Path(folder))
            done = subprocess.run(
                [*self.command, json.dumps([self.model_arguments(model), *runs])],
                env=self.environment(kv_bytes_per_token),
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            results = [Path(folder) / f"{index}.json" for index in range(len(runs))]
            if done.returncode or not all(path.exists() for path in results):
                raise TangramError(vllm.failure("vLLM's latency benchmark", done))
            medians = [statistics.median(json.loads(path.read_text("utf-8"))["latencies"]) for path in results]
        times = {}
        for place, one, all_tokens in zip(places_of(self.scenarios), medians[::2], medians[1::2], strict=True):
            times[place] = {"prefill": one, "decode": (all_tokens - one) / steps_of(self.scenarios[place[0]])}
        return times


def cores_of(threads: int) -> list[int]:
    """Return the first cores that this process may use, one per thread; without Linux, the first of the machine."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(threads))
    return usable[:threads]


def steps_of(scenario: Scenario) -> int:
    """Return the decode steps that are timed: those of the scenario after the first token, which the prefill gives."""
    return max(1, scenario.generate - 1)


def length_of(scenario: Scenario) -> int:
    """Return the largest number of tokens of a sequence."""
    return scenario.prefill + 1 + steps_of(scenario)


def copies_of(layers: Sequence[Layer], megabytes: int, shape: Shape, dtype: str, bounds: tuple[int, int]) -> int:
    """Return the number of copies that a stack of a given size has, within bounds."""
    size = max(1, sizes_of(layers, shape, dtype).parameter_bytes)
    return min(max(math.ceil(megabytes * 1e6 / size), bounds[0]), bounds[1])
