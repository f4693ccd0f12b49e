"""Files as their engine runs them: their names, and in llama.cpp their distance from the parent by its own logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from tangram.blocks.base import PARENT
from tangram.llama_cpp import F16, Model
from tangram.metrics import compare
from tangram.models.forward import logits_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def name_of(path: str | Path) -> tuple[str, str, str]:
    """Return target, solution and model of a file in a run's folder; the first two are empty for the parent's.

    Args:
        path: ``targets/{target}/{solution}/export/model.gguf``, ``.../export/decilm/model.safetensors`` or
            ``engines/parent/{type}/model.gguf``.
    """
    parts = Path(path).absolute().parts
    *_, target, solution, folder, _ = parts if Path(path).suffix == ".gguf" else parts[:-1]
    return ("", "", f"{PARENT}@{folder}") if solution == PARENT else (target, solution, "finetuned")


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
            expected = logits_of(parent, parent.model.norm(hidden[:-1].to(parent.device))).cpu()
            for name, values in compare(logits, expected, ids[1:]).items():
                parts.setdefault(name, []).append(values)
    return {name: torch.stack(values) for name, values in parts.items()}
