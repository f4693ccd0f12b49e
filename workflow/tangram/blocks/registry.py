"""The registry of all families of blocks, from this package and from packages that register some.

Families are imported by name at the first look-up. A static import would put every family into the code hash of every
job; `modules_of_variants` names the modules of a job's own variants.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import entry_points

from tangram.blocks.base import REGISTRY, Block, Variant
from tangram.errors import TangramError
from tangram.models.families import Shape

# A new family of this package is a file of its own and a name here.
FAMILIES = (
    *("parent", "gqa", "mean_gqa", "heads", "window", "width", "low_rank"),
    *("linear", "unbiased_linear", "constant", "no_op"),
)
ENTRY_POINTS = "tangram.blocks"  # the group under which other packages register the modules of their families


@functools.cache
def _load() -> None:
    for name in FAMILIES:
        import_module(f"tangram.blocks.{name}")
    for entry in entry_points(group=ENTRY_POINTS):
        entry.load()


def registry() -> Mapping[str, type[Block]]:
    """Return every family's class by the family's name, in order of severity."""
    _load()
    return dict(sorted(REGISTRY.items(), key=lambda item: (item[1].severity, item[0])))


def block_class(variant: Variant | str) -> type[Block]:
    """Return the class of a variant's family.

    Raises:
        TangramError: no family has this name.
    """
    try:
        parsed = Variant.parse(variant) if isinstance(variant, str) else variant
        return registry()[parsed.family]
    except (ValueError, KeyError):
        raise TangramError(f"'{variant}' is not a variant of any family: {', '.join(registry())}") from None


def get_block(kind: str, variant: Variant | str, shape: Shape) -> Block:
    """Return the block of a variant.

    Args:
        kind: ``'attention'``, ``'ffn'`` or ``'head'``.
        variant: its name, parsed or not.
        shape: the parent's sizes.

    Raises:
        TangramError: it is not a variant of ``kind``.
    """
    try:
        parsed = Variant.parse(variant) if isinstance(variant, str) else variant
        block = registry()[parsed.family]
    except (ValueError, KeyError):
        block = None
    if (
        block is None
        or kind not in block.kinds
        or not block.accepts(parsed.size)
        or parsed.precision not in (None, *block.precisions)
    ):
        raise TangramError(f"'{variant}' is not a variant of {kind}")
    return block(kind, parsed, shape)


def modules_of_variants(variants: Iterable[Variant | str] | None = None) -> list[str]:
    """Return the modules that define variants (by default all variants), for `provenance.code_hash`."""
    classes = registry().values() if variants is None else map(block_class, variants)
    return sorted({block.__module__ for block in classes})
