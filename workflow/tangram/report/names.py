"""Display names of models."""

from __future__ import annotations

from pathlib import Path

from tangram.config import LAYERS_DROPPED
from tangram.report.data import BEST, PARENT_KEY, Key, Results


def name_of(key: Key) -> str:
    """Return an evaluated model's display name."""
    if key == PARENT_KEY:
        return "parent"
    stage = "finetuned" if key.model == "finetuned" else "before finetuning"
    if key.solution == LAYERS_DROPPED:
        return f"{key.target}, layers dropped, {stage}"
    return f"{key.target}, {stage}" if key.solution == BEST else f"{key.target} #{key.solution}, {stage}"


def parent_name(results: Results) -> str:
    """Return the parent's name from its source, or "The parent"."""
    source = results.parent.get("source", {})
    name = source.get("member") or source.get("repo") or source.get("path")
    if name is None:
        return "The parent"
    plain = Path(name).name
    return plain.removesuffix(".gguf").rpartition(".")[0] or plain if plain.endswith(".gguf") else plain
