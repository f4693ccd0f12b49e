"""Speed of one model in torch: prefill, and greedy generation with a KV cache."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from tangram.config import Scenario
from tangram.costs.passes import Passes, fastest_kernels, synchronize
from tangram.evaluation.speed import Place, Seconds
from tangram.timing import interleaved

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED = "packed parent"  # the parent with packed kernels (`models.packed`); `PARENT` runs as in stock transformers
SAMPLES = 2  # per load: loading and warming up take longer than a pass


def time_model(model: PreTrainedModel, scenarios: Mapping[str, Scenario], seed: int) -> dict[Place, Seconds]:
    """Time a model in all scenarios at all of their batch sizes, after a pass that warms up.

    Args:
        model: a causal language model.
        scenarios: the scenarios by name.
        seed: seed of the random prompts.
    """
    times = {}
    for name, scenario in scenarios.items():
        for batch in scenario.batch_sizes:
            generator = torch.Generator().manual_seed(seed)
            prompt = torch.randint(model.config.vocab_size, (batch, scenario.prefill), generator=generator)
            prompt = prompt.to(model.device)
            with fastest_kernels():
                passes = Passes.of_model(model, prompt, prompt, scenario.generate)
                functions = {"prefill": passes.prefill, "decode": passes.decode}
                samples = interleaved(functions, SAMPLES, warmup=1, synchronize=synchronize(model.device.type))
            times[name, batch] = Seconds(**{phase: statistics.mean(values) for phase, values in samples.items()})
    return times
