"""Display names of models and solutions."""

from __future__ import annotations

from pathlib import Path

from tangram.blocks import NO_OP, Variant
from tangram.config import LAYERS_DROPPED, SEARCHES
from tangram.report.data import BEST, UNIFORM, Results
from tangram.report.estimates import PACKED_KEY, PARENT_KEY, Key

SEARCH_NAMES = {name: name.replace("-", " ").replace(NO_OP.replace("-", " "), NO_OP) for name in SEARCHES}
KIND_NAMES = {"attention": "attention", "ffn": "FFN", "head": "LM head", "model": "embedding, final norm"}


def name_of(results: Results, key: Key) -> str:
    """Return an evaluated model's display name."""
    if key in (PARENT_KEY, PACKED_KEY):
        return key.model
    stage = "finetuned" if key.model == "finetuned" else "before finetuning"
    return f"{solution_name(results, key.target, key.solution)}, {stage}"


def solution_name(results: Results, target: str, solution: str) -> str:
    """Return a solution's display name, which is unique in a run."""
    if solution == BEST:
        return target
    if solution in UNIFORM:
        return f"parent in {UNIFORM[solution]}"
    if solution in SEARCH_NAMES:
        return f"{target}, {SEARCH_NAMES[solution]}"
    return f"{target}, {_dropped(results, target)}" if solution == LAYERS_DROPPED else f"{target} #{solution}"


def short_name(results: Results, target: str, solution: str) -> str:
    """Return a solution's display name below its target's."""
    if solution == LAYERS_DROPPED:
        return _dropped(results, target)
    if solution in SEARCH_NAMES:
        return SEARCH_NAMES[solution]
    return solution_name(results, target, solution) if solution == BEST or solution in UNIFORM else f"#{solution}"


def _dropped(results: Results, target: str) -> str:
    """Return the name of the layers-dropped baseline, with the precision of its remaining layers."""
    architecture = results.architectures.get((target, LAYERS_DROPPED))
    variants = {v for layer in (architecture.layers if architecture else ()) for v in (layer.attention, layer.ffn)}
    precisions = {Variant.parse(variant).precision for variant in variants if variant != NO_OP} - {None}
    return ", ".join(["layers dropped", *sorted(filter(None, precisions))])


def parent_name(results: Results) -> str:
    """Return the parent's name from its source, or "The parent"."""
    source = results.parent.get("source", {})
    name = source.get("member") or source.get("repo") or source.get("path")
    if name is None:
        return "The parent"
    plain = Path(name).name
    return plain.removesuffix(".gguf").rpartition(".")[0] or plain if plain.endswith(".gguf") else plain
