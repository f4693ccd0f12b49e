"""The distance of a folder from the parent by vLLM's own log-probabilities."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from tangram import vllm
from tangram.errors import TangramError
from tangram.metrics import compare
from tangram.models.forward import logits_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEQUENCES = 4  # that are compared: every position has the log-probability of the whole vocabulary, as Python's objects


def log_probabilities(
    folders: Mapping[str, str | Path], prompts: Sequence[Sequence[int]], dtype: str, device: str = "cpu"
) -> dict[str, list[torch.Tensor]]:
    """Return vLLM's log-probabilities of prompts, each ``(tokens - 1, vocabulary)`` float32, by checkpoint.

    Args:
        folders: checkpoints that vLLM loads, by name.
        prompts: the tokens of each prompt.
        dtype: ``'float32'`` or ``'bfloat16'``.
        device: ``'cpu'`` or ``'cuda'``: that of the installed vLLM.

    Raises:
        TangramError: vLLM is not installed, or refuses a checkpoint.
    """
    if (interpreter := vllm.python()) is None:
        raise TangramError(f"vLLM is not installed; {vllm.INSTALL}")
    environment = {**vllm.environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # else a second model finds no memory
    if device == "cpu":
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    with tempfile.TemporaryDirectory(prefix="tangram-") as work:
        job, output = Path(work) / "job.json", Path(work) / "logprobs.safetensors"
        absolute = {name: str(Path(folder).absolute()) for name, folder in folders.items()}
        job.write_text(json.dumps({"folders": absolute, "prompts": prompts, "dtype": dtype}), encoding="utf-8")
        words = [interpreter, "-c", vllm.LOGPROBS, str(job), str(output)]
        done = subprocess.run(words, env=environment, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode or not output.exists():
            raise TangramError(vllm.failure("vLLM", done))
        tensors = load_file(output)
    return {name: [tensors[f"{name}/{index}"] for index in range(len(prompts))] for name in folders}


def compare_in_vllm(
    folder: str | Path, parent: PreTrainedModel, final: torch.Tensor, input_ids: torch.Tensor, dtype: str
) -> dict[str, torch.Tensor]:
    """Compare a folder's next-token predictions in vLLM with the parent's in torch, on the first `SEQUENCES` sequences.

    Args:
        folder: the checkpoint.
        parent: the parent, of which only the final norm and the LM head run.
        final: the parent's hidden states before its final norm, ``(sequences, length, hidden)``.
        input_ids: ``(sequences, length)``.
        dtype: dtype of vLLM's floats.

    Returns:
        The metrics of `metrics.compare`, each ``(at most SEQUENCES, length - 1)``.

    Raises:
        TangramError: see `log_probabilities`.
    """
    chosen = input_ids[:SEQUENCES]
    (results,) = log_probabilities({"child": folder}, chosen.tolist(), dtype, parent.device.type).values()
    parts: dict[str, list[torch.Tensor]] = {}
    with torch.inference_mode():
        for ids, hidden, result in zip(chosen, final[:SEQUENCES], results, strict=True):
            expected = logits_of(parent, parent.model.norm(hidden[:-1].to(parent.device))).cpu()
            for name, values in compare(result, expected, ids[1:]).items():
                parts.setdefault(name, []).append(values)
    return {name: torch.stack(values) for name, values in parts.items()}
