"""Checks of a config against the parent's `config.json`.

They run when the Snakefile is parsed, for a local or fetched parent or one with `parent.sizes`; else in the first job
that reads the parent. No heavy imports: every parse imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tangram import vllm
from tangram.blocks import HEAD, KINDS, Variant, get_block
from tangram.blocks.base import GGUF_PRECISIONS
from tangram.config import SPLITS, Config
from tangram.engines import LLAMA_CPP, VLLM, family_refusal
from tangram.errors import TangramError
from tangram.llama_cpp import INSTALL, find
from tangram.models.families import Shape, check_compensable

ROW_BLOCK = 32  # adjacent weights in a row that share a scale, in llama.cpp's types from q8_0 to q4_0
_NUMBERS = {
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
}


def positions(parent: Mapping[str, Any]) -> int | None:
    """Return the parent's maximum number of positions, with scaled rotary embeddings; None if its config lacks it.

    Args:
        parent: its `config.json`.
    """
    limit = parent.get("max_position_embeddings")
    if not isinstance(limit, int):
        return None
    rope = parent.get("rope_parameters") or parent.get("rope_scaling") or {}
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    return max(limit, int(factor * (original or limit))) if isinstance(factor, int | float) else limit


def check_length(key: str, tokens: int, parent: Mapping[str, Any]) -> None:
    """Raise a `TangramError` that names the config's key if ``tokens`` exceed the parent's positions."""
    limit = positions(parent)
    if limit is not None and tokens > limit:
        raise TangramError(
            f"config.{key}: {tokens} tokens exceed the parent's {limit} positions (max_position_embeddings); lower it"
        )


def check_variant(key: str, kind: str, variant: str, config: Config, parent: Mapping[str, Any]) -> None:
    """Raise a `TangramError` if a variant is certainly no smaller than the parent's subblock.

    Close cases are left to the block, which counts its weights exactly.
    """
    if not isinstance(parent.get("hidden_size"), int) or not isinstance(parent.get("intermediate_size"), int):
        return
    if reason := get_block(kind, variant, shape_from(config, parent)).too_large():
        raise TangramError(f"config.{key}: '{variant}'{reason}")


def check_rows(key: str, kind: str, variant: str, shape: Shape) -> None:
    """Raise a `TangramError` if rows of a variant's matrices have no whole blocks of its type in llama.cpp.

    The message names the nearest widths that have.
    """
    parsed = Variant.parse(variant)
    if parsed.precision not in GGUF_PRECISIONS or parsed.precision == "f16":
        return
    overrides = get_block(kind, parsed, shape).overrides()
    rows, ratios = {shape.hidden}, list[str]()
    if kind != HEAD and "linear" not in overrides:
        heads = int(overrides.get("num_attention_heads", shape.heads))
        rows.add(heads * shape.head_dim if kind == "attention" else _channels(parsed, shape))
    if "intermediate_size" in overrides and shape.hidden % ROW_BLOCK == 0:
        ratios = _ratios_near(parsed, shape)
    if wrong := sorted(row for row in rows if row % ROW_BLOCK):
        remedies = [*([f"choose {' or '.join(ratios)}"] if ratios else []), "take f16"]
        raise TangramError(
            f"config.{key}: '{variant}' has rows of {wrong[0]} weights, and {parsed.precision} stores them in blocks "
            f"of {ROW_BLOCK}; {', or '.join(remedies)}"
        )


def _channels(variant: Variant, shape: Shape) -> int:
    """Return the intermediate channels of an FFN's variant."""
    return int(get_block("ffn", variant, shape).overrides().get("intermediate_size", shape.intermediate))


def _ratios_near(variant: Variant, shape: Shape) -> list[str]:
    """Return the variants of whole blocks below and above a variant's width, each with the shortest ratio."""
    below = _channels(variant, shape) // ROW_BLOCK * ROW_BLOCK
    names = []
    for width in (below, below + ROW_BLOCK):
        for digits in range(1, 7):
            near = Variant(variant.family, round(width / shape.intermediate, digits), variant.precision)
            if 0 < width < shape.intermediate and near.size and _channels(near, shape) == width:
                names.append(f"{near} ({width} channels)")
                break
    return names


def shape_from(config: Config, sizes: Mapping[str, Any]) -> Shape:
    """Return the parent's shape.

    Args:
        config: numbers of layers and heads.
        sizes: the parent's `config.json` or `parent.sizes`: `hidden_size`, `intermediate_size`, and optionally
            `head_dim`, `vocab_size` and `tie_word_embeddings`.
    """
    return Shape(
        model_type=sizes.get("model_type", ""),
        num_layers=config.parent.num_layers,
        hidden=sizes["hidden_size"],
        heads=config.parent.num_attention_heads,
        kv_heads=config.parent.num_kv_heads,
        head_dim=sizes.get("head_dim") or sizes["hidden_size"] // config.parent.num_attention_heads,
        intermediate=sizes["intermediate_size"],
        vocabulary=sizes.get("vocab_size") or 0,
        tied_head=bool(sizes.get("tie_word_embeddings", False)),
    )


def check_engines(config: Config) -> None:
    """Raise a `TangramError` that names the target if its engine is not installed."""
    for name, target in config.targets.items():
        if target.engine == LLAMA_CPP and find() is None:
            raise TangramError(f"config.targets.{name}.engine: llama.cpp is not installed; install it: {INSTALL}")
        if target.engine == VLLM and vllm.latency_benchmark() is None:
            raise TangramError(f"config.targets.{name}.engine: vLLM is not installed; {vllm.INSTALL}")


def check(config: Config, parent: Mapping[str, Any] | None) -> None:
    """Check a config against its parent's `config.json`, or against `parent.sizes` if ``parent`` is None.

    Raises:
        TangramError: an engine is not installed, numbers differ, sequences or a scenario exceed the parent's positions,
            a variant is no smaller than the parent's subblock, a type of llama.cpp's does not fit its rows, or the
            parent's family cannot be compensated.
    """
    check_engines(config)
    sizes: dict[str, Any] = config.parent.sizes.model_dump() if config.parent.sizes is not None else {}
    if parent is not None:
        sizes = dict(parent)
        wrong = {
            key: parent[name]
            for key, name in _NUMBERS.items()
            if isinstance(parent.get(name), int) and parent[name] != getattr(config.parent, key)
        }
        if wrong:
            configured = ", ".join(f"{key}: {getattr(config.parent, key)}" for key in wrong)
            actual = ", ".join(f"{key}: {value}" for key, value in wrong.items())
            raise TangramError(f"config.parent has {configured}, but the checkpoint differs; write {actual}")
    if config.assembly.compensate:
        check_compensable(sizes.get("model_type", ""))
    check_length("corpus.sequence_length", config.corpus.sequence_length, sizes)
    for split in SPLITS:
        if (length := getattr(config.corpus, split).sequence_length) is not None:
            check_length(f"corpus.{split}.sequence_length", length, sizes)
    for name, scenario in config.scenarios.items():
        check_length(f"scenarios.{name}: prefill + generate", scenario.prefill + scenario.generate, sizes)
    long_context = config.evaluation.long_context
    for i, length in enumerate(long_context.lengths if long_context else ()):
        check_length(f"evaluation.long_context.lengths[{i}]", length, sizes)
    for name, target in config.targets.items():
        if target.engine == VLLM and (reason := vllm.vocabulary_refusal(sizes.get("vocab_size"))):
            raise TangramError(f"config.targets.{name}.engine: {reason}")
        if reason := family_refusal(sizes.get("model_type", ""), target.formats):
            raise TangramError(f"config.targets.{name}.export: {reason}; leave it out")
        if target.selection is not None and target.selection.metric == "judge":
            tokens = target.selection.prompt_tokens + target.selection.continuation_tokens
            check_length(f"targets.{name}.selection: prompt_tokens + continuation_tokens", tokens, sizes)
    for kind in KINDS:
        for i, variant in enumerate(config.library.listed(kind)):
            check_variant(f"library.{kind}[{i}]", kind, variant, config, sizes)
    if isinstance(sizes.get("hidden_size"), int) and isinstance(sizes.get("intermediate_size"), int):
        shape = shape_from(config, sizes)
        for kind in (*KINDS, HEAD):
            listed = config.library.listed(kind)
            for variant in config.library.variants(kind):
                key = f"library.{kind}[{listed.index(variant)}]" if variant in listed else f"library.precisions.{kind}"
                check_rows(key, kind, variant, shape)
