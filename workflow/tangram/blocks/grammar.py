"""Names of variants in a config: their canonical spelling, their check, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
import re

from tangram.blocks.base import ALL_PRECISIONS, GGUF_PRECISIONS, HEAD, PARENT, PRECISIONS, Block, Variant
from tangram.blocks.registry import block_class, registry
from tangram.errors import nearest

DEVICES = {"bf16": ("cpu", "cuda"), "int8": ("cpu", "cuda"), "fp8": ("cuda",)}  # those with kernels, by precision
DTYPES = {"bf16": "bfloat16"}  # the dtype of a run whose matrices all have the precision


def families(kind: str) -> dict[str, type[Block]]:
    """Return the classes that can replace a kind of subblock, by family, without the parent's."""
    return {name: block for name, block in registry().items() if kind in block.kinds and name != PARENT}


def forms(kind: str) -> list[str]:
    """Return the patterns of a kind's names, such as ``width-R``; the head's names are those of its precisions."""
    if kind == HEAD:
        return [f"{PARENT}@{precision}" for precision in ALL_PRECISIONS]
    return [block.form for block in families(kind).values()]


def canonical(name: str) -> str:
    """Return the canonical spelling of a variant's name: `width-0.5` for `width-.50`, `gqa-1` for `gqa-01`.

    Text that is not a variant's name is returned unchanged.
    """
    try:
        variant = Variant.parse(name)
    except ValueError:
        return name
    block = registry().get(variant.family)
    return str(variant) if block is not None and block.accepts(variant.size) else name


def precision_of(variant: str) -> str | None:
    """Return the precision in a variant's name; None for the run's dtype."""
    return Variant.parse(variant).precision


def source_of(variant: str) -> str | None:
    """Return the variant from whose piece a variant's quantized piece is made; None without one.

    A variant has none without a precision, or if its piece is made from the parent's weights.
    """
    parsed = Variant.parse(variant)
    return None if parsed.precision is None or parsed.family == PARENT else str(parsed.source)


def with_precision(variant: str, precision: str) -> str | None:
    """Return a variant's name with a precision; None if it has one, or if its block does not allow this one."""
    parsed = Variant.parse(variant)
    allowed = parsed.precision is None and precision in block_class(parsed).precisions
    return f"{variant}@{precision}" if allowed else None


def check(kind: str, name: str, where: str, heads: int, kv_heads: int) -> None:
    """Check that a name is a variant of a kind, as far as possible without the parent's widths.

    Args:
        kind: ``'attention'``, ``'ffn'`` or ``'head'``.
        name: the name in the config.
        where: the beginning of the message.
        heads: the parent's query heads.
        kv_heads: the parent's key-value heads.

    Raises:
        ValueError: the name is not a variant; the message suggests the probably intended name.
    """
    try:
        variant = Variant.parse(name)
    except ValueError:
        variant = Variant("")
    valid = {PARENT: registry()[PARENT], **families(kind)}
    block = valid.get(variant.family)
    if block is not None:
        if (reason := block.refusal(variant.size, heads, kv_heads)) is not None:
            raise ValueError(f"{where}{reason}")
        if block.accepts(variant.size):
            _check_precision(variant, block, where)
            return
    raise ValueError(f"{where} is not a known variant{_hint(kind, name)}")


def _check_precision(variant: Variant, block: type[Block], where: str) -> None:
    """Raise a ValueError if a block does not allow a variant's precision, or if the variant is `parent`."""
    if variant.precision is None:
        if variant.family == PARENT:
            raise ValueError(
                f"{where} is a choice anyway; leave it out, or add a precision: '{PARENT}@{PRECISIONS[0]}'"
            )
    elif variant.precision not in ALL_PRECISIONS:
        hint = nearest(variant.precision, ALL_PRECISIONS)
        raise ValueError(f"{where}: '{variant.precision}' is not a precision{hint}")
    elif variant.precision not in block.precisions:
        allowed = f"; valid: {', '.join(block.precisions)}" if block.precisions else ""
        raise ValueError(f"{where}: '{variant.source}' has no precision {variant.precision}{allowed}; leave it out")


def check_length(name: str, where: str, key: str, sequence_length: int) -> None:
    """Raise a ValueError if a variant computes what the parent does on the sequences that score it.

    Args:
        name: the variant.
        where: the beginning of the message.
        key: the config's key of the length.
        sequence_length: in tokens.
    """
    variant = Variant.parse(name)
    length = block_class(variant).unchanged_length(variant.size)
    if length is not None and length >= sequence_length:
        raise ValueError(
            f"{where} computes what the parent does on sequences of {key} ({sequence_length}) tokens; raise {key}, or "
            "choose a smaller number"
        )


def check_runs(precision: str, where: str, device: str, dtype: str) -> None:
    """Check that a precision differs from the run's dtype, and that the run's device has kernels for it.

    Args:
        precision: one of `ALL_PRECISIONS`; the float values of llama.cpp's types run on any device.
        where: the beginning of the message.
        device: ``cpu`` or ``cuda``.
        dtype: the run's dtype.

    Raises:
        ValueError: it is the run's dtype, or it does not run on the device.
    """
    if DTYPES.get(precision) == dtype:
        raise ValueError(f"{where}: {precision} is the run's dtype (dtype: {dtype}); leave the precision out")
    if precision in GGUF_PRECISIONS:
        if dtype != "float32":
            raise ValueError(f"{where}: {dtype} cannot hold the values of {precision}; set dtype: float32")
    elif device not in DEVICES[precision]:
        raise ValueError(
            f"{where}: {precision} runs on {' and '.join(DEVICES[precision])} only, not on device: {device}"
        )


def _hint(kind: str, name: str) -> str:
    """Suggest a name: the number with the family of nearest name, or else with the kind's first family that has one."""
    name, _, precision = name.partition("@")
    match = re.search(r"[0-9]{0,9}\.?[0-9]{1,9}", name)
    number = float(match[0]) if match else None
    valid = families(kind) | ({PARENT: registry()[PARENT]} if precision in ALL_PRECISIONS else {})
    blocks = [valid[family] for family in difflib.get_close_matches(re.split(r"[^a-z]", name)[0], list(valid), n=1)]
    if number is not None:
        blocks += [block for block in valid.values() if block.sizes is not None][:1]
    suggested = next(filter(None, (block.suggest(number) for block in blocks)), None)
    if suggested is None:
        return nearest(name, forms(kind))
    return f"; did you mean '{with_precision(suggested, precision) or suggested}'?"
