"""Names of models for people."""

from __future__ import annotations

from pathlib import Path

from tangram.config import LAYERS_DROPPED
from tangram.report.data import BEST, PARENT_KEY, Key, Results


def name_of(key: Key) -> str:
    """Return an evaluated model's name for people."""
    if key == PARENT_KEY:
        return "parent"
    stage = "finetuned" if key.model == "finetuned" else "before finetuning"
    if key.solution == LAYERS_DROPPED:
        return f"{key.target}, layers dropped, {stage}"
    return f"{key.target}, {stage}" if key.solution == BEST else f"{key.target} #{key.solution}, {stage}"


def parent_name(results: Results) -> str:
    """Return the parent's name as its source tells it, or just that it is the parent."""
    source = results.parent.get("source", {})
    name = source.get("member") or source.get("repo") or source.get("path")
    if name is None:
        return "The parent"
    plain = Path(name).name
    return plain.removesuffix(".gguf").rpartition(".")[0] or plain if plain.endswith(".gguf") else plain
