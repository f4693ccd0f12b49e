"""Speed of files in llama.cpp: prefill, and decode steps with a KV cache. For the interface see `torch_speed`."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

from tangram.cli import Runtime
from tangram.config import Scenario
from tangram.costs.llama_passes import Pass
from tangram.engines import LLAMA_CPP, REFERENCES
from tangram.evaluation.engine import name_of
from tangram.evaluation.speed import Name, Place, Seconds
from tangram.llama_cpp import Model
from tangram.timing import interleaved

SAMPLES = 2  # of each load: loading and warming up take longer than a pass
SPEEDUPS: dict[str, Name] = {"speedup": ("", "", REFERENCES[LLAMA_CPP])}


def timed_models(
    files: Iterable[str], scenarios: Mapping[str, Scenario], runtime: Runtime
) -> dict[tuple[Name, ...], Callable[[], dict[Place, Seconds]]]:
    """Return functions that load a file and time its scenarios, by the names of the models.

    Args:
        files: GGUFs of the children, and of the parent in several types.
        scenarios: the scenarios by name.
        runtime: threads.
    """
    return {(name_of(path),): partial(time_file, path, scenarios, runtime.threads) for path in files}


def time_file(path: str | Path, scenarios: Mapping[str, Scenario], threads: int) -> dict[Place, Seconds]:
    """Time a file in all scenarios at all of their batch sizes, after a pass that warms up.

    llama.cpp maps a file's pages in the system's cache, which another load would find again, and the speed of decoding
    depends on where they are. So a copy is loaded.

    Raises:
        TangramError: llama.cpp is not installed, or refuses the file.
    """
    times = {}
    with tempfile.TemporaryDirectory(prefix="tangram-") as folder:
        copy = shutil.copyfile(path, Path(folder, "model.gguf"))
        with Model(copy) as model:
            for name, scenario in scenarios.items():
                for batch in scenario.batch_sizes:
                    times[name, batch] = _time_passes(model, scenario, batch, threads)
    return times


def _time_passes(model: Model, scenario: Scenario, batch: int, threads: int) -> Seconds:
    with (
        closing(Pass.prefill(model, scenario, batch, threads)) as prefill,
        closing(Pass(model, batch, scenario.prefill, [1] * scenario.generate, threads)) as decode,
    ):
        samples = interleaved({"prefill": prefill, "decode": decode}, SAMPLES, warmup=1)
    return Seconds(**{phase: statistics.mean(values) for phase, values in samples.items()})
