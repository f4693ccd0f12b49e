"""Throughput end to end: whole models read a prompt and generate, in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tangram.blocks.base import PARENT
from tangram.config import Scenario
from tangram.costs.passes import Passes, fastest_kernels, synchronize
from tangram.timing import interleaved, median_and_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def throughput_rows(
    seconds: Mapping[str, tuple[Sequence[float], Sequence[float]]], name: str, scenario: Scenario, batch: int
) -> list[dict[str, Any]]:
    """Turn seconds into rates: ``batch · (prefill + generate) / (prefill seconds + all decode steps' seconds)``.

    Every model but the parent also gets a `speedup`: the median of its throughput over the parent's of the same turn.

    Args:
        seconds: by model, one prefill's and all decode steps' seconds in each turn.
        name: the scenario's name.
        scenario: prompt and generated tokens.
        batch: sequences.

    Returns:
        Rows of `tables.EVALUATION`: medians with standard errors, in tokens per second; n is the number of turns.
    """
    prompt, generated = batch * scenario.prefill, batch * scenario.generate
    metrics: dict[str, dict[str, list[float]]] = {}
    for model, (prefill, decode) in seconds.items():
        metrics[model] = {
            "throughput": [(prompt + generated) / (p + d) for p, d in zip(prefill, decode, strict=True)],
            "prefill_throughput": [prompt / p for p in prefill],
            "decode_throughput": [generated / d for d in decode],
        }
    for model in [model for model in metrics if PARENT in metrics and model != PARENT]:
        pairs = zip(metrics[model]["throughput"], metrics[PARENT]["throughput"], strict=True)
        metrics[model]["speedup"] = [own / parent for own, parent in pairs]
    rows = []
    for model, samples in metrics.items():
        for metric, values in samples.items():
            value, error = median_and_error(values)
            row = {"model": model, "task": name, "metric": metric, "value": value, "standard_error": error}
            rows.append({**row, "n": len(values)})
    return rows


def measure_throughput(
    models: Mapping[str, PreTrainedModel],
    name: str,
    scenario: Scenario,
    batch: int,
    repeats: int,
    vocabulary: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Measure a scenario's prefill and greedy generation with a KV cache, the models in turns.

    Args:
        models: causal language models, by name (``'parent'``, ``'child'``, ``'finetuned'``), on one device.
        name: the scenario's name.
        scenario: prompt and generated tokens.
        batch: sequences.
        repeats: turns, at least 2.
        vocabulary: random prompts are drawn from this many tokens.
        seed: of the prompts.

    Returns:
        Rows of `tables.EVALUATION`; see `throughput_rows`.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(vocabulary, (batch, scenario.prefill), generator=generator)
    functions: dict[str, Callable[[], object]] = {}
    for model_name, model in models.items():
        ids = prompt.to(model.device)
        passes = Passes.of_model(model, ids, ids, scenario.generate)
        functions[f"{model_name} prefill"], functions[f"{model_name} decode"] = passes.prefill, passes.decode
    device = next(iter(models.values())).device.type
    with fastest_kernels():
        samples = interleaved(functions, repeats, warmup=1, synchronize=synchronize(device))
    seconds = {model: (samples[f"{model} prefill"], samples[f"{model} decode"]) for model in models}
    return throughput_rows(seconds, name, scenario, batch)
