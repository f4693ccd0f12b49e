"""Times from vLLM's own latency benchmark, on folders that hold a config and no weights.

`vllm bench latency` runs in a process of its own, with weights that vLLM draws at random (`--load-format dummy`).
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tangram import vllm
from tangram.blocks.architecture import Architecture
from tangram.blocks.base import HEAD, Kind
from tangram.config import Scenario
from tangram.costs import llama_stack
from tangram.costs.llama_layers import Part
from tangram.costs.llama_stack import Sizes
from tangram.engines import VLLM
from tangram.errors import TangramError
from tangram.export.decilm_config import CODE, CODE_FILE, decilm_config
from tangram.models.families import Shape, read_config, shape_of

TOKENS = 10_000  # the benchmark's prompts are of smaller tokens
WARMUP = 2  # untimed runs of every process
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "fp8": 1}

Layer = tuple[Part | None, Part | None]


def parts_of(kind: Kind, variant: str, shape: Shape) -> list[Part]:
    """Return a variant as parts: one, or none for a no-op; every linear map has a bias.

    Raises:
        TangramError: vLLM has no such subblock.
    """
    parts = llama_stack.parts_of(kind, variant, shape, VLLM)
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
    vocabulary: int = TOKENS
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


@dataclass(frozen=True)
class Bench:
    """The benchmark's settings, which all models of a job share.

    Attributes:
        device: ``'cpu'`` or ``'cuda'``: that of the installed vLLM.
        dtype: ``'float32'`` or ``'bfloat16'``.
        threads: threads on a CPU.
        command: the words that start the benchmark.
    """

    device: str
    dtype: str
    threads: int = 1
    command: Sequence[str] = field(default_factory=lambda: vllm.latency_benchmark() or ())

    def arguments(self, model: str | Path, scenario: Scenario, batch: int, generate: int, repeats: int) -> list[str]:
        """Return the words that time the generation of some tokens after a scenario's prompt."""
        numbers = {
            "max-model-len": length_of(scenario),
            "input-len": scenario.prefill,
            "output-len": generate,
            "batch-size": batch,
            "num-iters-warmup": WARMUP,
            "num-iters": repeats,
        }
        return [
            *self.command,
            *("--model", str(model), "--trust-remote-code", "--load-format", "dummy"),
            *("--skip-tokenizer-init", "--disable-detokenize", "--dtype", self.dtype),
            # Compiling takes minutes on a CPU; a GPU runs as it serves, with compiled kernels and CUDA graphs.
            *(["--enforce-eager"] if self.device == "cpu" else []),
            *(word for name, number in numbers.items() for word in (f"--{name}", str(number))),
        ]

    def environment(self, cache_bytes: int) -> dict[str, str]:
        """Return the environment of vLLM's processes.

        Args:
            cache_bytes: bytes of the KV cache.
        """
        if self.device != "cpu":
            return vllm.environment()
        gigabytes = str(max(1, math.ceil(2 * cache_bytes / 2**30)))
        cores = f"0-{self.threads - 1}" if self.threads > 1 else "0"
        return {
            **vllm.environment(),
            "VLLM_CPU_KVCACHE_SPACE": gigabytes,
            "VLLM_CPU_OMP_THREADS_BIND": cores,
            "OMP_NUM_THREADS": str(self.threads),
        }

    def latencies(
        self, model: str | Path, scenario: Scenario, batch: int, generate: int, repeats: int, cache_bytes: int = 0
    ) -> list[float]:
        """Return the seconds of each run.

        Raises:
            TangramError: vLLM is not installed, or failed.
        """
        if not self.command:
            raise TangramError(f"vLLM is not installed; {vllm.INSTALL}")
        with tempfile.TemporaryDirectory(prefix="tangram-") as folder:
            output = Path(folder) / "latency.json"
            words = [*self.arguments(model, scenario, batch, generate, repeats), "--output-json", str(output)]
            done = subprocess.run(
                words, env=self.environment(cache_bytes), cwd=folder, capture_output=True, text=True, check=False
            )
            if done.returncode or not output.exists():
                lines = [line.strip() for line in done.stderr.splitlines() if "Error" in line]
                reason = lines[-1] if lines else f"exit status {done.returncode}"
                raise TangramError(
                    f"vLLM's latency benchmark failed: {reason}; for its messages set VLLM_LOGGING_LEVEL=INFO"
                )
            result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        return [float(seconds) for seconds in result["latencies"]]


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
