"""Speed of checkpoints in vLLM, by its own latency benchmark. For the interface see `torch_speed`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from tangram.blocks.base import PARENT
from tangram.cli import Runtime
from tangram.config import Scenario
from tangram.costs.vllm_bench import Bench
from tangram.engines import REFERENCES, VLLM
from tangram.errors import TangramError
from tangram.evaluation.speed import Name, Place, Seconds
from tangram.models.families import shape_of
from tangram.vllm import vocabulary_refusal

SPEEDUPS: dict[str, Name] = {"speedup": ("", "", REFERENCES[VLLM])}


def timed_models(
    files: Iterable[str], scenarios: Mapping[str, Scenario], runtime: Runtime
) -> dict[tuple[Name, ...], Callable[[], dict[Place, Seconds]]]:
    """Return functions that start vLLM with a model and time its scenarios, by the names of the models.

    Args:
        files: weights of the parent, which vLLM reads as it is, and of the children in
            ``targets/{target}/{solution}/export/decilm``.
        scenarios: the scenarios by name.
        runtime: device, dtype and threads.

    Raises:
        TangramError: the benchmark cannot run the parent.
    """
    parent, *children = [Path(path).absolute().parent for path in files]
    shape = shape_of(parent)
    if reason := vocabulary_refusal(shape.vocabulary):
        raise TangramError(reason)
    folders: dict[Name, Path] = {("", "", PARENT): parent}
    folders |= {(*folder.parts[-4:-2], "finetuned"): folder for folder in children}  # type: ignore[misc]
    bench = Bench(scenarios, runtime.device, runtime.dtype, runtime.threads, random=False)
    room = 2 * shape.num_layers * shape.kv_heads * shape.head_dim * 4  # of the parent in float32, for all models
    return {(name,): partial(time_model, bench, folder, room) for name, folder in folders.items()}


def time_model(bench: Bench, folder: Path, kv_bytes_per_token: int) -> dict[Place, Seconds]:
    """Start vLLM with a checkpoint, and time all scenarios at all of their batch sizes.

    Raises:
        TangramError: vLLM is not installed, or refuses the checkpoint.
    """
    return {
        (name, batch): Seconds(times["prefill"], times["decode"] * bench.scenarios[name].generate)
        for (name, batch), times in bench.times(folder, kv_bytes_per_token).items()
    }
