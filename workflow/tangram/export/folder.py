"""Checkpoint folders in the layout of Hugging Face with the config of another model class."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangram.child.assemble import NOT_COPIED, WEIGHTS_FILE
from tangram.errors import TangramError
from tangram.export.parts import Checkpoint
from tangram.files import atomic_path, sha256_of, write_tensors

if TYPE_CHECKING:
    import torch

# Attributes of a child's config that only Tangram's model code reads.
OWN = ("per_layer_config", "linear", "structured", "precision", "attention_window", "head_precision", "auto_map")


def check_values(child: Checkpoint, name: str, stored: Collection[str] = ("bf16",)) -> None:
    """Raise a `TangramError` if a format cannot store a child's precisions, besides floats of one dtype."""
    precisions = {part.precision: part.origin for part in child.parts} | {child.head_precision: "the head"}
    for precision, origin in precisions.items():
        if precision is not None and precision not in stored:
            raise TangramError(
                f"{name}: {origin} has precision {precision}, which the format cannot store; "
                f"leave {name} out of targets.*.export"
            )


def base_config(child: Checkpoint) -> dict[str, Any]:
    """Return a child's config without the attributes that only Tangram's model code reads."""
    return {key: value for key, value in child.config.to_dict().items() if key not in OWN}


def outer_tensors(child: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the tensors outside the layers, by transformers' names."""
    head = {f"lm_head.{name}": tensor for name, tensor in (child.head or {}).items()}
    return {"model.embed_tokens.weight": child.embedding, "model.norm.weight": child.norm, **head}


def write_folder(
    child: Checkpoint,
    output: str | Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, torch.Tensor]],
    provenance: Mapping[str, str],
    code: Mapping[str, str] | None = None,
) -> None:
    """Write a checkpoint with a child's tokenizer, chat template and generation config, atomically.

    Args:
        child: source of the other files.
        output: folder to write or to replace.
        config: content of `config.json`.
        tensors: the weights by name; floats of more than 8 bits, but for scales, get the dtype of the embedding.
        provenance: flat metadata.
        code: Python files by name.
    """
    dtype = child.embedding.dtype
    state = {
        name: (tensor if tensor.itemsize == 1 or name.endswith(".weight_scale") else tensor.to(dtype)).contiguous()
        for name, tensor in tensors
    }
    with atomic_path(output) as folder:
        ignored = shutil.ignore_patterns(*NOT_COPIED, "*.py")
        shutil.copytree(child.folder, folder, ignore=ignored, copy_function=shutil.copyfile)
        for name, text in (code or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
        settings = {**config, "dtype": str(dtype).removeprefix("torch.")}
        (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_tensors(folder / WEIGHTS_FILE, state, provenance)
        record = {**provenance, "model_safetensors_sha256": sha256_of(folder / WEIGHTS_FILE)}
        (folder / "provenance.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
