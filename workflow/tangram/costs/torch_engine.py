"""Measure the speed of subblocks, LM heads and whole models in PyTorch, with the model's modules and KV cache.

All run with packed kernels (`models.packed`), except the stock parent, which runs as in transformers. Weights are
random, because speed depends on shapes and not on values; only the parent's `config.json` is needed. A subblock is
timed as a stack of layers that contain only this subblock, its norm and the residual. The stack is larger than the
processor's caches, because a whole model also reads every layer's weights from memory at each decode step.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from tangram.blocks import HEAD, get_block
from tangram.blocks.architecture import Architecture, LayerChoice, heterogeneous_config
from tangram.blocks.no_op import NoOp
from tangram.blocks.parent import Parent
from tangram.config import Costs, Scenario
from tangram.costs.calibration import STOCK
from tangram.costs.calibration import calibration_architectures as calibration_architectures  # part of the interface
from tangram.costs.measurement import MODEL, cost_row, decode_window, precise
from tangram.costs.memory import kv_bytes_per_token, parameter_bytes, parameters
from tangram.costs.passes import Passes, mean_length_passes, time_passes
from tangram.models.families import Shape, decoder_layers, read_config
from tangram.models.modeling_tangram import MODEL_CLASSES
from tangram.models.packed import PackedLinear, pack
from tangram.models.quantized import LARGEST, Fp8Linear, Int8Linear, ScaledLinear, with_precision

# Every job times the parent's subblock, and a no-op completes the layers of its stack.
PARENT, NO_OP = Parent.family, NoOp.family
COPIES = (8, 96)  # smallest and largest number of layers in a stack
HEAD_COPIES = 8  # largest number of LM heads
PER_LAYER = ("layer_types", "no_rope_layers")  # attributes of configs that are lists with one entry per layer
STACK_VOCABULARY = 8  # small, because a stack is timed without its embedding and LM head


def proportional(values: Sequence[Any], number: int) -> list[Any]:
    """Return a list of some length with the parent's shares of each value; the parent's list for its length.

    A parent with several types of attention has one cost per variant, the mean over its layers.
    """
    ordered = values if number == len(values) else sorted(values)
    return [ordered[(2 * i + 1) * len(values) // (2 * number)] for i in range(number)]


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
    for name in PER_LAYER:
        if values := getattr(parent_config, name, None):
            sizes[name] = proportional(values, layers)
    if vocabulary is not None:
        sizes |= {"vocab_size": vocabulary, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    config = heterogeneous_config(parent_config, architecture, sizes)
    with torch.device(device), no_init_weights():
        model = MODEL_CLASSES[config.model_type]._from_config(config, dtype=getattr(torch, dtype))
    model.tie_weights()
    randomize(model)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def randomize(module: nn.Module) -> None:
    """Fill a module's weights at random: zero pages would be faster than real weights, and denormals slower.

    Layers of equal inputs get equal smoothing factors, as in real pieces: only such layers become one product.
    """
    for weight in module.parameters():
        weight.uniform_(-0.02, 0.02)
    for part in module.modules():
        if isinstance(part, Int8Linear):
            part.weight.random_(-LARGEST, LARGEST + 1)
        elif isinstance(part, Fp8Linear):
            part.weight.copy_(torch.empty_like(part.weight, dtype=torch.float32).uniform_(-part.largest, part.largest))
        if isinstance(part, ScaledLinear):
            part.smooth.copy_(torch.linspace(0.5, 2.0, part.in_features))


def only(kind: str, variant: str) -> LayerChoice:
    """Return the choice of a layer with one subblock and a no-op for the other."""
    return LayerChoice(variant if kind == "attention" else NO_OP, variant if kind == "ffn" else NO_OP)


@dataclass(frozen=True)
class Timed:
    """Something to time.

    Attributes:
        prepare: returns the passes of a scenario at a batch size.
        copies: number of copies that every pass runs.
        parameters: number of one copy's weights.
        parameter_bytes: bytes of one copy's weights.
        kv_bytes_per_token: bytes of one copy's KV cache per token and sequence.
    """

    prepare: Callable[[Scenario, int], Passes]
    copies: int
    parameters: int
    parameter_bytes: int
    kv_bytes_per_token: int


def _no_passes(scenario: Scenario, batch: int) -> Passes:
    raise ValueError("a no-op is not timed")


NOTHING = Timed(_no_passes, 1, 0, 0, 0)


def _copies(size: int, stack_megabytes: int) -> int:
    return min(max(math.ceil(stack_megabytes * 1e6 / size), COPIES[0]), COPIES[1])


def _stack(parent: str | Path, choice: LayerChoice, stack_megabytes: int, dtype: str, device: str) -> Timed:
    one = decoder_layers(random_model(parent, Architecture((choice,)), dtype, device, STACK_VOCABULARY))[0]
    size = parameter_bytes(one)
    copies = _copies(size, stack_megabytes)
    model = pack(random_model(parent, Architecture((choice,) * copies), dtype, device, STACK_VOCABULARY))
    prepare = functools.partial(mean_length_passes, Passes.of_layers, model)
    return Timed(prepare, copies, parameters(one), size, kv_bytes_per_token(one))


def _head(parent: str | Path, variant: str, stack_megabytes: int, dtype: str, device: str) -> Timed:
    """Return copies of an LM head; a head that is tied to the embedding stores no weights of its own."""
    config = read_config(parent)
    head: Any = nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=getattr(torch, dtype), device=device)
    precision = get_block(HEAD, variant, Shape.of(config)).variant.precision
    if precision is not None:
        with torch.device(device):
            head = with_precision(head, precision)
    randomize(head)
    size = parameter_bytes(head)
    copies = min(HEAD_COPIES, max(1, math.ceil(stack_megabytes * 1e6 / size)))
    heads = [PackedLinear([head]) for _ in range(copies)]

    def prepare(scenario: Scenario, batch: int) -> Passes:
        hidden = torch.randn(batch, scenario.prefill, config.hidden_size, dtype=getattr(torch, dtype)).to(device)
        return Passes.of_heads(heads, hidden, decode_window(scenario)[1])

    tied = config.tie_word_embeddings and variant == PARENT
    return Timed(prepare, copies, 0 if tied else parameters(head), 0 if tied else size, 0)


def _rest(parent: str | Path, dtype: str, device: str) -> Timed:
    """Return a model without layers and LM head."""
    empty = random_model(parent, Architecture(()), dtype, device)
    empty.lm_head = nn.Identity()
    prepare = functools.partial(mean_length_passes, Passes.of_model, empty)
    return Timed(prepare, 1, parameters(empty), parameter_bytes(empty), 0)


def _timed(parent: str | Path, kind: str, variant: str, costs: Costs, dtype: str, device: str) -> Timed:
    if kind == MODEL:
        return _rest(parent, dtype, device)
    if kind == HEAD:
        return _head(parent, variant, costs.stack_megabytes, dtype, device)
    return _stack(parent, only(kind, variant), costs.stack_megabytes, dtype, device)


def _precise_samples(passes: Mapping[str, Passes], costs: Costs, device: str) -> dict[str, dict[str, list[float]]]:
    """Time the parent's subblock and a variant until `costs.interval` or `costs.max_repeats` is reached."""
    samples = time_passes(passes, costs.repeats, device)

    while not precise(samples.values(), costs) and len(samples["decode"][PARENT]) < costs.max_repeats:
        for phase, more in time_passes(passes, costs.repeats, device, warmup=1).items():
            for name, seconds in more.items():
                samples[phase][name] += seconds
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
    """Time one variant of a subblock and the parent's round-robin; or, for kind ``'model'``, the rest of the model.

    Args:
        parent: the parent's folder; only its `config.json` is read.
        kind: ``'attention'``, ``'ffn'``, ``'head'`` or ``'model'``.
        variant: a variant of that kind; for ``'model'`` only ``'parent'``.
        costs: number of samples and size of the stacks.
        scenarios: inference workloads, by name.
        device: ``'cpu'`` or ``'cuda'``.
        dtype: ``'float32'`` or ``'bfloat16'``.
        progress: wraps the list of workloads.

    Returns:
        Rows of `tables.COSTS`. A no-op costs 0 by definition; its job times only the parent's subblock.
    """
    names = [name for name in dict.fromkeys((PARENT, variant)) if name != NO_OP]
    timed = {name: _timed(parent, kind, name, costs, dtype, device) for name in names}
    sizes = timed.get(variant, NOTHING)
    rows = []
    for name, batch in progress([(name, batch) for name, s in scenarios.items() for batch in s.batch_sizes]):
        passes = {n: t.prepare(scenarios[name], batch) for n, t in timed.items()}
        for phase, samples in _precise_samples(passes, costs, device).items():
            seconds = {n: [value / timed[n].copies for value in values] for n, values in samples.items()}
            row = {"engine": "torch", "device": device, "scenario": name, "phase": phase, "batch": batch}
            row |= {"parameters": sizes.parameters, "parameter_bytes": sizes.parameter_bytes}
            row |= {"kv_bytes_per_token": sizes.kv_bytes_per_token}
            rows.append(cost_row(seconds, kind, variant, **row))
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
    """Time whole models and the stock parent round-robin, with all of them in memory at once.

    Returns:
        Seconds (median) of each model, by scenario, phase and batch. Arguments as in `measure`.
    """
    models = {name: pack(random_model(parent, a, dtype, device)) for name, a in architectures.items()}
    models[STOCK] = random_model(parent, architectures[PARENT], dtype, device)
    seconds = {}
    for name, batch in progress([(name, batch) for name, s in scenarios.items() for batch in s.batch_sizes]):
        passes = {n: mean_length_passes(Passes.of_model, m, scenarios[name], batch) for n, m in models.items()}
        for phase, samples in time_passes(passes, costs.calibration_repeats, device, warmup=1).items():
            seconds[name, phase, batch] = {n: statistics.median(values) for n, values in samples.items()}
    return seconds
