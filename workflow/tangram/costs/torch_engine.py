"""Measure the speed of subblocks and whole models in PyTorch, with the model's modules and KV cache.

Weights are random, because speed depends on shapes and not on values; only the parent's `config.json` is needed. A
subblock is timed as a stack of layers that contain only this subblock, its norm and the residual. The stack is larger
than the processor's caches, because a whole model also reads every layer's weights from memory at each decode step.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from tangram.blocks.architecture import Architecture, LayerChoice, heterogeneous_config
from tangram.blocks.no_op import NoOp
from tangram.blocks.parent import Parent
from tangram.config import Costs, Scenario
from tangram.costs.memory import kv_bytes_per_token, parameter_bytes
from tangram.costs.passes import Passes, mean_length_passes, time_passes
from tangram.models.families import decoder_layers, read_config
from tangram.models.modeling_tangram import MODEL_CLASSES
from tangram.timing import interquartile_range

PARENT, NO_OP = (
    Parent.family,
    NoOp.family,
)  # in every job: every job times the first; the second completes a stack.s layers
LAYER_CLASS = 0  # the supported families have one shape of layer (`Shape.of` refuses others)
MODEL = "model"  # the table's kind for embedding, mask, rotary angles, final norm, LM head and greedy choice
COPIES = (8, 96)  # smallest and largest number of layers in a stack
STACK_VOCABULARY = 8  # small, because a stack is timed without its embedding and LM head


def random_model(
    parent: str | Path, architecture: Architecture, dtype: str, device: str, vocabulary: int | None = None
) -> PreTrainedModel:
    """Build a child with random weights from the parent's config.

    Args:
        parent: the parent's folder.
        architecture: the variants, for any number of layers.
        dtype: ``'float32'`` or ``'bfloat16'``.
        device: ``'cpu'`` or ``'cuda'``.
        vocabulary: size of the vocabulary; the parent's by default.
    """
    parent_config, layers = read_config(parent), len(architecture.layers)
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
            weight.uniform_(-0.02, 0.02)  # zero pages would be faster than real weights, and denormals slower
    return model.eval().requires_grad_(False)


def only(kind: str, variant: str) -> LayerChoice:
    """Return the choice of a layer with one subblock and a no-op for the other."""
    return LayerChoice(**{"attention": NO_OP, "ffn": NO_OP, kind: variant})


def _stack(parent: str | Path, choice: LayerChoice, stack_megabytes: int, dtype: str, device: str) -> PreTrainedModel:
    model = random_model(parent, Architecture((choice,)), dtype, device, STACK_VOCABULARY)
    copies = math.ceil(stack_megabytes * 1e6 / parameter_bytes(decoder_layers(model)[0]))
    copies = min(max(copies, COPIES[0]), COPIES[1])
    return random_model(parent, Architecture((choice,) * copies), dtype, device, STACK_VOCABULARY)


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
    """Time one variant of a subblock and the parent's round-robin; or, for kind ``'model'``, a model without layers.

    Args:
        parent: the parent's folder; only its `config.json` is read.
        kind: ``'attention'``, ``'ffn'`` or ``'model'``.
        variant: a variant of that kind; for ``'model'`` only ``'parent'``.
        costs: number of samples and size of the stacks.
        scenarios: inference workloads, by name.
        device: ``'cpu'`` or ``'cuda'``.
        dtype: ``'float32'`` or ``'bfloat16'``.
        progress: wraps the list of workloads.

    Returns:
        Rows of `tables.COSTS`. A no-op costs 0 by definition; its job times only the parent's subblock.
    """
    if kind == MODEL:
        empty = random_model(parent, Architecture(()), dtype, device)
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
            variant_seconds = seconds.get(variant, [0.0, 0.0])
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
                    "seconds": statistics.median(variant_seconds),
                    "seconds_spread": interquartile_range(variant_seconds),
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
    """Time whole models round-robin, with all of them in memory at once.

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
