"""Speed of one model in torch: prefill, and greedy generation with a KV cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from tangram.config import Scenario
from tangram.costs.passes import Passes, fastest_kernels, synchronize
from tangram.evaluation.speed import Place, Seconds
from tangram.models.loading import load_model
from tangram.models.packed import pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED = "packed parent"  # the parent with packed kernels (`models.packed`); `PARENT` runs as in stock transformers


def load_packed(folder: str | Path, dtype: str, device: str) -> PreTrainedModel:
    """Load a checkpoint and pack it."""
    return pack(load_model(folder, dtype, device))


def fit_together(folders: Iterable[Path]) -> bool:
    """Return whether all checkpoints fit in half of the free memory at once, each twice: packing copies weights."""
    needed = 2 * sum((folder / "model.safetensors").stat().st_size for folder in folders)
    return needed < psutil.virtual_memory().available / 2


def timer(
    load: Callable[[], PreTrainedModel], scenarios: Mapping[str, Scenario], seed: int, device: str, keep: bool
) -> Callable[[], dict[Place, Seconds]]:
    """Return a function that times a model once in all scenarios at all of their batch sizes.

    Args:
        load: loads the model.
        scenarios: the scenarios by name.
        seed: seed of the random prompts.
        device: the model's device.
        keep: keep the model in memory after the first call, for shorter rounds; else load it in every call.
    """
    kept: dict[Place, Passes] = {}

    def prepare(model: PreTrainedModel, scenario: Scenario, batch: int) -> Passes:
        generator = torch.Generator().manual_seed(seed)
        prompt = torch.randint(model.config.vocab_size, (batch, scenario.prefill), generator=generator)
        prompt = prompt.to(device)
        return Passes.of_model(model, prompt, prompt, scenario.generate)

    def run() -> dict[Place, Seconds]:
        model = None if kept else load()
        times = {}
        with fastest_kernels():
            for name, scenario in scenarios.items():
                for batch in scenario.batch_sizes:
                    passes = kept[name, batch] if model is None else prepare(model, scenario, batch)
                    if keep:
                        kept[name, batch] = passes
                    times[name, batch] = Seconds(
                        *(_seconds(phase, device) for phase in (passes.prefill, passes.decode))
                    )
        return times

    return run


def _seconds(run: Callable[[], object], device: str) -> float:
    wait = synchronize(device)
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start
