"""Engines that run children, formats that children are written in, and the variants that each can express.

Standard library only: the config and the Snakefile import this module. `export/` writes the formats.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from tangram.blocks.base import FORMATS, GGUF_PRECISIONS, NO_OP, PARENT, PRECISIONS, Variant
from tangram.blocks.registry import block_class

TORCH, LLAMA_CPP, VLLM = "torch", "llama.cpp", "vllm"
GGUF, DECILM, HF = FORMATS
FORMAT_OF = {LLAMA_CPP: GGUF, VLLM: DECILM}  # the format that an engine reads, if it does not read the child itself
# The families whose children of different layers each format can express; gguf has no norms of queries and keys there.
# A phi3 becomes a llama or a mistral when it is fetched.
FAMILIES = {
    GGUF: ("llama", "mistral", "qwen2", "phi3"),
    DECILM: ("llama", "mistral", "phi3"),
    HF: ("llama", "mistral", "qwen2", "qwen3", "phi3"),
}
# The precisions that each engine computes in and each format stores, besides the run's dtype.
ENGINES: dict[str, tuple[str, ...]] = {
    TORCH: PRECISIONS,
    LLAMA_CPP: ("bf16", *GGUF_PRECISIONS),
    VLLM: ("int8", "fp8"),
}
STORED: dict[str, tuple[str, ...]] = {GGUF: ENGINES[LLAMA_CPP], DECILM: ("bf16", "int8", "fp8"), HF: ("bf16",)}
# The modules that time subblocks and whole models, one per engine, imported by name. Their interface is `measure`,
# `measure_whole` and `calibration_architectures`; see `costs/torch_engine.py`.
TIMERS = {
    TORCH: "tangram.costs.torch_engine",
    LLAMA_CPP: "tangram.costs.llama_engine",
    VLLM: "tangram.costs.vllm_engine",
}
# The modules that time trained models, one per engine, with the interface of `evaluation/torch_speed.py`.
SPEED_TIMERS = {
    TORCH: "tangram.evaluation.torch_speed",
    LLAMA_CPP: "tangram.evaluation.llama_speed",
    VLLM: "tangram.evaluation.vllm_speed",
}
# The parent's variant to which relative limits refer: in llama.cpp the file that most users have, else the run's dtype.
REFERENCES = {TORCH: PARENT, LLAMA_CPP: f"{PARENT}@f16", VLLM: PARENT}
# Types of whose files llama.cpp's quantizer leaves the embedding and the head at 8 bits.
SMALL_TYPES = ("q5_1", "q5_0", "q4_1", "q4_0")
# Recipes of llama.cpp's own quantizer, which mix types (`export/gguf_recipe.py`).
RECIPES = ("q4_k_m",)
# The types and recipes of the parent's files for llama.cpp, which a user would take instead of a child.
PARENT_TYPES = ("f16", "q8_0", *RECIPES, "q4_0")


def head_precision(engine: str, precision: str) -> str:
    """Return the precision of the head in the rival of one precision, as the engine's users have it."""
    return "q8_0" if engine == LLAMA_CPP and precision in SMALL_TYPES else precision


def needed_formats(engine: str, formats: Iterable[str]) -> tuple[str, ...]:
    """Return the formats that a target's child must be written in: the engine's, and those that the config asks for."""
    return tuple(dict.fromkeys([*([FORMAT_OF[engine]] if engine in FORMAT_OF else []), *formats]))


def family_refusal(model_type: str, formats: Iterable[str]) -> str | None:
    """Return why a parent's family has no children in some format, in one line; None if it has.

    Args:
        model_type: transformers' name of the family, such as ``'llama'``; empty if it is unknown.
        formats: formats of `FORMATS`.
    """
    for name in formats:
        if model_type and model_type not in FAMILIES[name]:
            return f"format {name} cannot express children of family {model_type}"
    return None


def refusal(variant: str, engine: str, formats: Iterable[str] = ()) -> str | None:
    """Return why a target cannot use a variant, in one line that continues the variant's name; None if it can.

    Args:
        variant: the variant's name.
        engine: one of `ENGINES`.
        formats: the formats that the child must be written in, of `FORMATS`.
    """
    precision = Variant.parse(variant).precision
    if precision is not None and precision not in ENGINES[engine]:
        return f"engine {engine} has no precision {precision}"
    for name in needed_formats(engine, formats):
        if name not in block_class(variant).formats:
            return f"format {name} cannot express it"
        if precision is not None and precision not in STORED[name]:
            return f"format {name} has no precision {precision}"
    return None


def timer(engine: str) -> Any:
    """Return the module that times subblocks and whole models in an engine."""
    return import_module(TIMERS[engine])


def speed_timer(engine: str) -> Any:
    """Return the module that times trained models in an engine."""
    return import_module(SPEED_TIMERS[engine])


def timed(engine: str, kind: str, variants: Iterable[str]) -> tuple[str, ...]:
    """Return the variants of a kind that are timed in an engine besides `parent`.

    They are its reference, those of the library that it runs, and in llama.cpp the stub (`costs/llama_layers.py`) that
    the cost of a linear map instead of an FFN contains.
    """
    reference = REFERENCES[engine]
    runs = [variant for variant in variants if refusal(variant, engine) is None]
    if engine == LLAMA_CPP and kind == "ffn" and any(block_class(variant).part for variant in runs):
        runs.append(NO_OP)
    return tuple(dict.fromkeys([reference, *runs] if reference != PARENT else runs))
