"""Speed of models in torch: prefill, and greedy generation with a KV cache.

Every engine has such a module, with `timed_models` and `SPEEDUPS`: by metric, the model over which it is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tangram.blocks.base import PARENT
from tangram.cli import Runtime
from tangram.config import Scenario
from tangram.costs.passes import Passes, fastest_kernels, synchronize
from tangram.evaluation.speed import SAMPLES, Name, Place, Seconds
from tangram.models.loading import load_model
from tangram.models.packed import pack
from tangram.timing import interleaved

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STOCK: Name = ("", "", PARENT)  # as in stock transformers
PACKED: Name = ("", "", "packed parent")  # with packed kernels (`models.packed`), as all children
SPEEDUPS = {"speedup": STOCK, "packed_speedup": PACKED}


def timed_models(
    files: Iterable[str], scenarios: Mapping[str, Scenario], runtime: Runtime
) -> dict[tuple[Name, ...], Callable[[], dict[Place, Seconds]]]:
    """Return functions that load a model and time its scenarios, by the names of all models of this speed.

    Finetuning does not change a child's shape, so only the child before finetuning is timed; children with equal
    configs are timed once.

    Args:
        files: weights of the parent, and of the children in ``{target}/{solution}/child``.
        scenarios: the scenarios by name.
        runtime: device, dtype and seed.
    """

    def time_folder(folder: Path, packed: bool = True) -> dict[Place, Seconds]:
        model = load_model(folder, runtime.dtype, runtime.device)
        return time_model(pack(model) if packed else model, scenarios, runtime.seed)

    parent, *children = [Path(path).parent for path in files]
    alike: dict[str, list[Path]] = {}
    for folder in children:
        alike.setdefault((folder / "config.json").read_text(encoding="utf-8"), []).append(folder)
    timed: dict[tuple[Name, ...], Callable[[], dict[Place, Seconds]]] = {
        (STOCK,): partial(time_folder, parent, packed=False),
        (PACKED,): partial(time_folder, parent),
    }
    for folders in alike.values():
        names = tuple((folder.parent.parent.name, folder.parent.name, "child") for folder in folders)
        timed[names] = partial(time_folder, folders[0])
    return timed


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
