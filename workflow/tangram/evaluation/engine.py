"""Models as llama.cpp runs them: their speed, and their distance from the parent by the engine's own logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from tangram.config import Scenario
from tangram.costs.llama_passes import Pass
from tangram.evaluation.throughput import median_rows, speeds
from tangram.gguf_types import block_size
from tangram.llama_cpp import F16, Model
from tangram.metrics import compare
from tangram.models.families import Shape
from tangram.timing import interleaved

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REFERENCE = "parent@f16"  # the model over which speed-ups are measured, and to which limits of targets refer
RIVALS = ("f16", "q8_0", "q4_0")  # types of the parent's files, which a user would take instead of a child
LOADS = 3  # of small files: the speed of decoding depends on the pages where the weights are
SMALL = 1e9  # bytes


def rivals(shape: Shape) -> list[str]:
    """Return the types of `RIVALS` whose blocks divide every row of the parent's matrices."""
    rows = (shape.hidden, shape.heads * shape.head_dim, shape.intermediate)
    return [kind for kind in RIVALS if not any(row % block_size(kind) for row in rows)]


def compare_in_engine(
    path: str | Path, parent: PreTrainedModel, final: torch.Tensor, input_ids: torch.Tensor, threads: int, label: str
) -> dict[str, torch.Tensor]:
    """Compare a file's next-token predictions with the parent's in torch, on whole sequences.

    Args:
        path: the GGUF.
        parent: the parent, of which only the final norm and the LM head run.
        final: the parent's hidden states before its final norm, ``(sequences, length, hidden)``.
        input_ids: ``(sequences, length)``.
        threads: threads of llama.cpp.
        label: label of the progress bar.

    Returns:
        The metrics of `metrics.compare`, each ``(sequences, length - 1)``.

    Raises:
        TangramError: llama.cpp refuses the file.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    with Model(path) as model, torch.inference_mode():
        for ids, hidden in tqdm(list(zip(input_ids, final, strict=True)), desc=label, mininterval=5):
            logits = torch.from_numpy(model.logits([ids.tolist()], cache=F16, threads=threads)[0, :-1])
            expected = parent.lm_head(parent.model.norm(hidden[:-1].to(parent.device))).cpu()
            for name, values in compare(logits, expected, ids[1:]).items():
                parts.setdefault(name, []).append(values)
    return {name: torch.stack(values) for name, values in parts.items()}


def speed_rows(
    seconds: Mapping[str, tuple[Sequence[float], Sequence[float]]], name: str, scenario: Scenario, batch: int
) -> list[dict[str, Any]]:
    """Return throughputs in tokens per second, seconds to the first token, and speed-ups over `REFERENCE`.

    Args:
        seconds: by model, the seconds of the prefill and of all decode steps in each round.
        name: the scenario's name.
        scenario: the scenario.
        batch: batch size.

    Returns:
        Rows of `tables.EVALUATION`: medians with standard errors; n is the number of rounds.
    """
    rows = []
    reference = speeds(*seconds[REFERENCE], scenario, batch)["throughput"]
    for model, phases in seconds.items():
        metrics = speeds(*phases, scenario, batch)
        ratios = [own / other for own, other in zip(metrics["throughput"], reference, strict=True)]
        rows += median_rows(model, name, {**metrics, "time_to_first_token": phases[0], "speedup": ratios})
    return rows


def measure_in_engine(
    files: Mapping[str, Path], name: str, scenario: Scenario, batch: int, repeats: int, threads: int
) -> list[dict[str, Any]]:
    """Measure a scenario's prefill and all of its decode steps, round-robin over the models.

    Args:
        files: GGUFs by the models' names, with `REFERENCE`.
        name: the scenario's name.
        scenario: the scenario.
        batch: batch size.
        repeats: number of rounds, at least 2.
        threads: threads of llama.cpp.

    Returns:
        Rows of `tables.EVALUATION`; see `speed_rows`. Seconds of a round are means over loads of a file.
    """
    with ExitStack() as stack:
        functions: dict[Any, Pass] = {}
        loads = {}
        for model_name, path in files.items():
            loads[model_name] = LOADS if path.stat().st_size < SMALL else 1
            for load in range(loads[model_name]):
                model = stack.enter_context(Model(path))
                prefill = Pass.prefill(model, scenario, batch, threads)
                decode = Pass(model, batch, scenario.prefill, [1] * scenario.generate, threads)
                for phase, timed in (("prefill", prefill), ("decode", decode)):
                    functions[model_name, phase, load] = timed
                    stack.callback(timed.close)
        samples: dict[Any, list[float]] = interleaved(functions, repeats, warmup=1)

        def seconds(model_name: str, phase: str) -> list[float]:
            rounds = zip(*(samples[model_name, phase, load] for load in range(loads[model_name])), strict=True)
            return [sum(values) / len(values) for values in rounds]

    by_model = {model_name: (seconds(model_name, "prefill"), seconds(model_name, "decode")) for model_name in files}
    return speed_rows(by_model, name, scenario, batch)
