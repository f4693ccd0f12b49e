"""The engines in which children run, and the precisions of matrices that each of them has.

Standard library only: every parse of the Snakefile imports this module.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from tangram.blocks.base import PARENT, PRECISIONS, Variant

TORCH, LLAMA_CPP = "torch", "llama.cpp"
ENGINES: dict[str, tuple[str, ...]] = {TORCH: PRECISIONS, LLAMA_CPP: ("bf16", "f16")}


def refusal(variant: str, engine: str, formats: Iterable[str] = ()) -> str | None:
    """Return why a target cannot use a variant, in one line that continues the variant's name; None if it can."""
    precision = Variant.parse(variant).precision
    return None if precision in (None, *ENGINES[engine]) else f"engine {engine} has no precision {precision}"


# The modules that time subblocks and whole models, one per engine, imported by name. Their interface is `measure`,
# `measure_whole` and `calibration_architectures`; see `costs/torch_engine.py`.
TIMERS = {TORCH: "tangram.costs.torch_engine", LLAMA_CPP: "tangram.costs.llama_engine"}
# The parent's variant to which relative limits refer: in llama.cpp the file that most users have.
REFERENCES = {TORCH: PARENT, LLAMA_CPP: f"{PARENT}@f16"}


def timer(engine: str) -> Any:
    """Return the module that times in an engine."""
    return import_module(TIMERS[engine])


def timed(engine: str, variants: Iterable[str]) -> tuple[str, ...]:
    """Return the variants of a kind that are timed in an engine besides `parent`: those that it runs, its reference."""
    reference = REFERENCES[engine]
    runs = [variant for variant in variants if refusal(variant, engine) is None]
    return tuple(dict.fromkeys([reference, *runs] if reference != PARENT else runs))
