"""Names of variants in a config: their canonical spelling, their check, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
import re

from tangram.blocks.base import PARENT, Block, Variant
from tangram.blocks.registry import registry
from tangram.errors import nearest


def families(kind: str) -> dict[str, type[Block]]:
    """Return the classes that can replace a kind of subblock, by family, without the parent's."""
    return {name: block for name, block in registry().items() if kind in block.kinds and name != PARENT}


def forms(kind: str) -> list[str]:
    """Return the patterns of a kind's names, such as ``width-R``."""
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


def check(kind: str, name: str, where: str, heads: int, kv_heads: int) -> None:
    """Check that a name is a variant of a kind, as far as possible without the parent's widths.

    Args:
        kind: ``'attention'`` or ``'ffn'``.
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
    block = families(kind).get(variant.family)
    if block is not None and variant.precision is None:
        if (reason := block.refusal(variant.size, heads, kv_heads)) is not None:
            raise ValueError(f"{where}{reason}")
        if block.accepts(variant.size):
            return
    raise ValueError(f"{where} is not a known variant{_hint(kind, name)}")


def _hint(kind: str, name: str) -> str:
    """Suggest a name: the number with the family of nearest name, or else with the kind's first family that has one."""
    match = re.search(r"[0-9]{0,9}\.?[0-9]{1,9}", name)
    number = float(match[0]) if match else None
    valid = families(kind)
    blocks = [valid[family] for family in difflib.get_close_matches(re.split(r"[^a-z]", name)[0], list(valid), n=1)]
    if number is not None:
        blocks += [block for block in valid.values() if block.sizes is not None][:1]
    suggested = next(filter(None, (block.suggest(number) for block in blocks)), None)
    return f"; did you mean '{suggested}'?" if suggested else nearest(name, forms(kind))
