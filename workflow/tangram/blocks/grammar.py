"""Names of variants as a config may spell them: the canonical one, and what a mistaken one was meant to be."""

from __future__ import annotations

import difflib
import re

from tangram.blocks.base import PARENT, Block, Variant
from tangram.blocks.registry import registry
from tangram.errors import nearest


def families(kind: str) -> dict[str, type[Block]]:
    """Return the classes that can replace a kind of subblock, by family; the parent's own is not among them."""
    return {name: block for name, block in registry().items() if kind in block.kinds and name != PARENT}


def forms(kind: str) -> list[str]:
    """Return the forms of a kind's names, such as ``width-R``."""
    return [block.form for block in families(kind).values()]


def canonical(name: str) -> str:
    """Return the one spelling of a variant's name: `width-0.5` for `width-.50`, `gqa-1` for `gqa-01`.

    Any other text is returned as it is.
    """
    try:
        variant = Variant.parse(name)
    except ValueError:
        return name
    block = registry().get(variant.family)
    return str(variant) if block is not None and block.accepts(variant.size) else name


def check(kind: str, name: str, where: str, heads: int, kv_heads: int) -> None:
    """Check that a name is a variant of a kind, as far as that can be said without the parent's widths.

    Args:
        kind: ``'attention'`` or ``'ffn'``.
        name: as the config spells it.
        where: what the message begins with.
        heads: the parent's query heads.
        kv_heads: the parent's key-value heads.

    Raises:
        ValueError: it is not; the message says what was probably meant.
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
    """Return what was probably meant: the family of nearest name, or else the kind's first one, with the number."""
    match = re.search(r"[0-9]{0,9}\.?[0-9]{1,9}", name)
    number = float(match[0]) if match else None
    known = families(kind)
    meant = [known[family] for family in difflib.get_close_matches(re.split(r"[^a-z]", name)[0], list(known), n=1)]
    if number is not None:
        meant += [block for block in known.values() if block.sizes is not None][:1]
    suggested = next(filter(None, (block.suggest(number) for block in meant)), None)
    return f"; did you mean '{suggested}'?" if suggested else nearest(name, forms(kind))
