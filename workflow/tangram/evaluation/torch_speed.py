"""Speed of models in torch: prefill, and greedy generation with a KV cache.

Every engine has such a module, with `timed_models` and `SPEEDUPS`: by metric, the model over which it is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from tangram.blocks.base import PARENT
from tangram.cli import Runtime
from tangram.config import Scenario
from tangram.costs.passes import Passes, fastest_kernels, synchronize
from tangram.evaluation.speed import Name, Place, Seconds
from tangram.models.loading import load_model
from tangram.models.packed import pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STOCK: Name = ("", "", PARENT)  # as in stock transformers
PACKED: Name = ("", "", "packed parent")  # with packed kernels (`models.packed`), as all children
SPEEDUPS = {"speedup": STOCK, "packed_speedup": PACKED}


def timed_models(
    files: Iterable[str], scenarios: Mapping[str, Scenario], runtime: Runtime
) -> dict[tuple[Name, ...], Callable[[], dict[Place, Seconds]]]:
    """Return functions that time a model in all scenarios, by the names of all models of its shape.

    Finetuning does not change a child's shape, so only the child before finetuning is timed; models with equal configs
    are timed once. On a GPU, or if they do not fit in memory together, models are loaded anew in every round, one at a
    time.

    Args:
        files: weights of the parent, and of the children in ``{target}/{solution}/child``.
        scenarios: the scenarios by name.
        runtime: device, dtype and seed.
    """
    parent, *children = [Path(path).parent for path in files]
    folders: dict[Name, Path] = {STOCK: parent, PACKED: parent}
    folders |= {(folder.parent.parent.name, folder.parent.name, "child"): folder for folder in children}
    alike: dict[tuple[bool, bytes], list[Name]] = {}
    for name, folder in folders.items():
        alike.setdefault((name == STOCK, (folder / "config.json").read_bytes()), []).append(name)
    keep = runtime.device == "cpu" and fit_together(folders[names[0]] for names in alike.values())
    timed = {}
    for names in alike.values():
        loader = load_model if names[0] == STOCK else load_packed
        load = partial(loader, folders[names[0]], runtime.dtype, runtime.device)
        timed[tuple(names)] = timer(load, scenarios, runtime.seed, runtime.device, keep)
    return timed


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
