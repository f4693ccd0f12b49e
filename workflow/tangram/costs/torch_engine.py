"""Times subblocks and whole models in PyTorch, with the model's own modules and KV cache.

Weights are random: speed depends on shapes, not on values, so only the parent's `config.json` is needed. A subblock
is timed as a stack of layers that hold nothing else (its norm and the residual included). The stack is larger than
the processor's caches: in a real model too, every layer's weights come from memory at each decode step.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.initialization import no_init_weights

from tangram.blocks.architecture import Architecture, LayerChoice, heterogeneous_config
from tangram.blocks.base import PARENT
from tangram.config import Costs, Scenario
from tangram.costs.memory import kv_bytes_per_token, parameter_bytes
from tangram.models.families import decoder_layers, read_config
from tangram.models.modeling_tangram import MODEL_CLASSES
from tangram.timing import interleaved, interquartile_range

LAYER_CLASS = 0  # the supported families have one shape of layer (`Shape.of` refuses others)
NO_OP = "no-op"
MODEL = "model"  # the kind of embedding, mask, rotary angles, final norm, LM head and greedy choice
DECODE_STEPS = 4  # consecutive steps per sample, around the mean length of the cache
COPIES = (8, 96)  # limits of a stack's layers
STACK_VOCABULARY = 8  # a stack is entered behind the embedding


@contextmanager
def fastest_kernels() -> Iterator[None]:
    """Time what users run: deterministic mode is slower (it fills fresh memory and avoids some kernels)."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def synchronise(device: str) -> Callable[[], None]:
    """Return the function that waits for a device."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def random_model(
    parent: str | Path, architecture: Architecture, dtype: str, device: str, vocabulary: int | None = None
) -> PreTrainedModel:
    """Build a whole child with random weights from the parent's config alone.

    Args:
        parent: the parent's folder.
        architecture: one choice per layer, of any number of layers.
        dtype: ``'float32'`` or ``'bfloat16'``.
        device: ``'cpu'`` or ``'cuda'``.
        vocabulary: tokens; the parent's by default.
    """
    parent_config, layers = read_config(parent), len(architecture)
    sizes: dict[str, Any] = {"num_hidden_layers": layers}
    if getattr(parent_config, "layer_types", None):
        sizes["layer_types"] = parent_config.layer_types[:1] * layers
    if vocabulary is not None:
        sizes |= {"vocab_size": vocabulary, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    config = heterogeneous_config(parent_config, architecture, sizes)
    with torch.device(device), no_init_weights():
        model = MODEL_CLASSES[config.model_type]._from_config(config, dtype=getattr(torch, dtype))
    model.tie_weights()
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-0.02, 0.02)  # neither zero pages nor denormals, which are faster or slower than weights
    return model.eval().requires_grad_(False)


def only(kind: str, variant: str) -> LayerChoice:
    """Return a layer that holds one subblock and nothing else."""
    return LayerChoice(**{"attention": NO_OP, "ffn": NO_OP, kind: variant})


def fork(cache: Cache) -> Cache:
    """Return a cache with the same past; what is added to it leaves the original as it was."""
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    return forked


def random_ids(model: PreTrainedModel, batch: int, length: int) -> torch.Tensor:
    """Return random tokens, ``(batch, length)``."""
    return torch.randint(model.config.vocab_size, (batch, length)).to(model.device)


@torch.inference_mode()
def advance(model: PreTrainedModel, input_ids: torch.Tensor, cache: Cache | None = None) -> tuple[torch.Tensor, Cache]:
    """Read tokens and choose the next one greedily.

    Args:
        model: a causal language model.
        input_ids: ``(batch, tokens)``.
        cache: the past; extended in place, or made anew.

    Returns:
        The next token of each sequence, ``(batch, 1)``, and the cache.
    """
    output = model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1].argmax(dim=-1, keepdim=True), output.past_key_values


@dataclass(frozen=True)
class Passes:
    """The two things that are timed: reading the whole prompt, and `steps` decode steps; repeatable at will.

    Both return their last result: the next token, or the last layer's output.
    """

    prefill: Callable[[], torch.Tensor]
    decode: Callable[[], torch.Tensor]
    steps: int

    @classmethod
    def of_model(cls, model: PreTrainedModel, prompt: torch.Tensor, past: torch.Tensor, steps: int) -> Passes:
        """Prepare a whole model.

        Args:
            model: a causal language model.
            prompt: what a prefill reads, ``(batch, prefill)``.
            past: what the cache holds before the first decode step, ``(batch, tokens)``.
            steps: decode steps.
        """
        first, cache = advance(model, past)

        def decode() -> torch.Tensor:
            token, growing = first, fork(cache)
            for _ in range(steps):
                token, growing = advance(model, token, growing)
            return token

        return cls(lambda: advance(model, prompt)[0], decode, steps)

    @classmethod
    def of_layers(cls, model: PreTrainedModel, prompt: torch.Tensor, past: torch.Tensor, steps: int) -> Passes:
        """Prepare a model's layers alone, called as the model itself calls them; arguments as in `of_model`.

        Masks, rotary angles and the empty cache are made once per pass for all layers: here, and not timed.
        """
        layers = decoder_layers(model)
        calls: list[tuple[torch.Tensor, dict[str, Any]]] = []
        recorder = layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: calls.append((args[0], kwargs)), with_kwargs=True
        )
        advance(model, prompt)
        token, cache = advance(model, past)
        growing = fork(cache)
        for _ in range(steps):
            token, growing = advance(model, token, growing)
        recorder.remove()
        prefill, _, *decode = calls
        empty = DynamicCache(config=model.config)

        @torch.inference_mode()
        def run(recorded: list[tuple[torch.Tensor, dict[str, Any]]], past_key_values: Cache) -> torch.Tensor:
            for entering, kwargs in recorded:
                hidden, arguments = entering, {**kwargs, "past_key_values": past_key_values}
                for layer in layers:
                    hidden = layer(hidden, **arguments)
            return hidden

        return cls(lambda: run([prefill], fork(empty)), lambda: run(decode, fork(cache)), steps)


def mean_length_passes(
    prepare: Callable[[PreTrainedModel, torch.Tensor, torch.Tensor, int], Passes],
    model: PreTrainedModel,
    scenario: Scenario,
    batch: int,
) -> Passes:
    """Prepare a scenario's prefill, and a few decode steps around the mean length of its cache."""
    steps = min(DECODE_STEPS, scenario.generate)
    before = scenario.prefill + (scenario.generate - steps) // 2
    return prepare(model, random_ids(model, batch, scenario.prefill), random_ids(model, batch, before), steps)


def time_passes(
    passes: Mapping[str, Passes], repeats: int, device: str, warmup: int = 2
) -> dict[str, dict[str, list[float]]]:
    """Time models or stacks in turns; return samples by phase and name: seconds per prefill and per decode step."""
    samples = {}
    with fastest_kernels():
        for phase in ("prefill", "decode"):
            functions = {name: getattr(p, phase) for name, p in passes.items()}
            samples[phase] = interleaved(functions, repeats, warmup, synchronise(device))
    for name, p in passes.items():
        samples["decode"][name] = [seconds / p.steps for seconds in samples["decode"][name]]
    return samples


def _stack(parent: str | Path, choice: LayerChoice, stack_megabytes: int, dtype: str, device: str) -> PreTrainedModel:
    one = random_model(parent, (choice,), dtype, device, STACK_VOCABULARY)
    copies = math.ceil(stack_megabytes * 1e6 / parameter_bytes(decoder_layers(one)[0]))
    copies = min(max(copies, COPIES[0]), COPIES[1])
    return random_model(parent, (choice,) * copies, dtype, device, STACK_VOCABULARY)


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
    """Measure one variant of a subblock, with the parent's own in turns; or what is neither (kind ``'model'``).

    Args:
        parent: the parent's folder; only its `config.json` is read.
        kind: ``'attention'``, ``'ffn'`` or ``'model'``.
        variant: a variant of that kind; for ``'model'`` only ``'parent'``.
        costs: repeats and size of the stacks.
        scenarios: workloads, by name.
        device: ``'cpu'`` or ``'cuda'``.
        dtype: ``'float32'`` or ``'bfloat16'``.
        progress: wraps the list of workloads.

    Returns:
        Rows of `tables.COSTS`. A no-op costs nothing by definition; only the parent's subblock is timed beside it.
    """
    if kind == MODEL:
        empty = random_model(parent, (), dtype, device)
        models, copies, prepare = {PARENT: empty}, {PARENT: 1}, Passes.of_model
        size, kv_bytes = parameter_bytes(empty), 0
    else:
        names = dict.fromkeys((PARENT, variant))
        timed = [name for name in names if name != NO_OP]
        models = {n: _stack(parent, only(kind, n), costs.stack_megabytes, dtype, device) for n in timed}
        copies = {name: len(decoder_layers(model)) for name, model in models.items()}
        prepare = Passes.of_layers
        size = kv_bytes = 0
        if variant != NO_OP:
            layer = decoder_layers(models[variant])[0]
            size, kv_bytes = parameter_bytes(layer), kv_bytes_per_token(layer)
    rows = []
    for name, batch in progress([(name, batch) for name, s in scenarios.items() for batch in s.batch_sizes]):
        passes = {n: mean_length_passes(prepare, m, scenarios[name], batch) for n, m in models.items()}
        for phase, samples in time_passes(passes, costs.repeats, device).items():
            seconds = {n: [value / copies[n] for value in values] for n, values in samples.items()}
            own = seconds.get(variant, [0.0, 0.0])
            rows.append(
                {
                    "layer_class": LAYER_CLASS,
                    "kind": kind,
                    "variant": variant,
                    "engine": costs.engine,
                    "device": device,
                    "scenario": name,
                    "phase": phase,
                    "batch": batch,
                    "seconds": statistics.median(own),
                    "seconds_spread": interquartile_range(own),
                    "parent_seconds": statistics.median(seconds[PARENT]),
                    "parameter_bytes": size,
                    "kv_bytes_per_token": kv_bytes,
                }
            )
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
    """Measure whole models in turns; all of them are in memory at once.

    Returns:
        Seconds (median) of each model, by scenario, phase and batch. Arguments as in `measure`.
    """
    models = {name: random_model(parent, a, dtype, device) for name, a in architectures.items()}
    seconds = {}
    for name, batch in progress([(name, batch) for name, s in scenarios.items() for batch in s.batch_sizes]):
        passes = {n: mean_length_passes(Passes.of_model, m, scenarios[name], batch) for n, m in models.items()}
        for phase, samples in time_passes(passes, costs.calibration_repeats, device, warmup=1).items():
            seconds[name, phase, batch] = {n: statistics.median(values) for n, values in samples.items()}
    return seconds
