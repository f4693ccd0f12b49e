"""End-to-end throughput: prefill and generation of whole models, timed round-robin."""

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

PACKED = "packed parent"  # the parent with packed kernels (`models.packed`); `PARENT` runs as in stock transformers


def throughput_rows(
    seconds: Mapping[str, tuple[Sequence[float], Sequence[float]]], name: str, scenario: Scenario, batch: int
) -> list[dict[str, Any]]:
    """Return throughputs: ``batch · (prefill + generate) / (seconds of the prefill + seconds of all decode steps)``.

    Every model but the parent also gets a `speedup`, the median ratio of its throughput to the parent's in the same
    round, and a child also the `packed_speedup`, over the packed parent.

    Args:
        seconds: by model, the seconds of the prefill and of all decode steps in each round.
        name: the scenario's name.
        scenario: the scenario.
        batch: batch size.

    Returns:
        Rows of `tables.EVALUATION`: medians with standard errors, in tokens per second; n is the number of rounds.
    """
    metrics = {model: speeds(*phases, scenario, batch) for model, phases in seconds.items()}
    for metric, reference in (("speedup", PARENT), ("packed_speedup", PACKED)):
        for model in [m for m in metrics if reference in metrics and m not in (PARENT, reference)]:
            pairs = zip(metrics[model]["throughput"], metrics[reference]["throughput"], strict=True)
            metrics[model][metric] = [child / parent for child, parent in pairs]
    return [row for model, samples in metrics.items() for row in median_rows(model, name, samples)]


def speeds(prefill: Sequence[float], decode: Sequence[float], scenario: Scenario, batch: int) -> dict[str, list[float]]:
    """Return tokens per second in every round, in all and by phase, of the seconds of prefills and of decode steps."""
    prompt, generated = batch * scenario.prefill, batch * scenario.generate
    return {
        "throughput": [(prompt + generated) / (p + d) for p, d in zip(prefill, decode, strict=True)],
        "prefill_throughput": [prompt / p for p in prefill],
        "decode_throughput": [generated / d for d in decode],
    }


def median_rows(model: str, name: str, samples: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Return a model's medians with standard errors as rows of `tables.EVALUATION`; n is the number of rounds."""
    rows = []
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
    """Measure a scenario's prefill and greedy generation with a KV cache, round-robin over the models.

    Args:
        models: causal language models, by name (``'parent'``, ``'packed parent'``, ``'child'``), on one device.
        name: the scenario's name.
        scenario: the scenario.
        batch: batch size.
        repeats: number of rounds, at least 2.
        vocabulary: number of tokens that random prompts are drawn from.
        seed: seed of the prompts.

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
