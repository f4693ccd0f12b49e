"""The types of the search space: `Variant`, a name taken apart once, and `Block`, the class behind a family of names.

Neither torch nor pandas is imported here: the config is checked with these classes whenever Snakemake starts.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar

from tangram.models.families import Shape

if TYPE_CHECKING:
    import torch

    from tangram.blocks.calibration import Calibration

Kind: TypeAlias = Literal["attention", "ffn"]
KINDS: tuple[Kind, ...] = ("attention", "ffn")
PARENT, NO_OP = "parent", "no-op"  # the two variants that every search space has
CONFIG_NAME: dict[str, str] = {"attention": "attention", "ffn": "mlp"}  # transformers' names of the kinds in `skip`
FITTED_TOKENS = 16_384  # at a time: intermediate values of a whole split would not fit a GPU
LARGEST_COUNT = 999_999_999

_FAMILY = r"[a-z]+(?:-[a-z]+)*"
_NAME = re.compile(rf"({_FAMILY})(?:-([0-9]*\.?[0-9]+))?(?:@([a-z0-9]+))?")


@dataclass(frozen=True)
class Variant:
    """The name of a piece, taken apart: ``width-0.5`` is ``Variant("width", 0.5)``; `str` puts it together again.

    Attributes:
        family: the name of its block, such as ``"no-op"``.
        size: a count (``gqa-1``), a ratio (``width-0.5``), or None.
        precision: how its matrices are stored and multiplied, such as ``"int8"``; None for the run's dtype.
    """

    family: str
    size: int | float | None = None
    precision: str | None = None

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Take a name apart; two spellings of one thing (``width-.50``, ``width-0.5``) give equal variants.

        Raises:
            ValueError: no variant of any family can have this name.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"'{name}' is not a variant's name")
        family, size, precision = match.groups()
        number = None if size is None else float(size) if "." in size else int(size)
        return cls(family, number, precision)

    def __str__(self) -> str:
        """Return the canonical name, which is also the name of the variant's folder."""
        parts = [self.family, f"-{self.number}" if self.number else "", f"@{self.precision}" if self.precision else ""]
        return "".join(parts)

    @property
    def number(self) -> str:
        """The size as it is written, ``"0.5"``; empty without one."""
        return "" if self.size is None else f"{Decimal(repr(self.size)):f}"


@dataclass(frozen=True)
class Block(ABC):
    """One alternative for a layer's attention or FFN; a subclass is a family of them, one per size.

    A subclass states the class attributes below, of which those without a value here are required.

    Attributes:
        kind: the subblock that it replaces.
        variant: its name, taken apart.
        shape: the parent's sizes.
        family: what its variants' names begin with.
        kinds: the subblocks that it can replace.
        form: the names of its variants, for documentation and messages: ``"width-R"``.
        label: its name on a small tile of the report, with ``{size}`` for the number; empty for none.
        hue: its colors in the report, as ``#rrggbb``: of the mildest and of the strongest size; those here are after
            Okabe and Ito's and Tol's color-blind safe sets.
        severity: how much of the parent it leaves, for the order in the report and in messages: 0 is the parent's own
            subblock, 5 nothing; 3 suits most.
        sizes: ``int`` if a name holds a count, ``float`` if a ratio below 1, None if it has no size.
        trainable: whether its initial weights may be improved by training.
    """

    kind: str
    variant: Variant
    shape: Shape

    family: ClassVar[str]
    kinds: ClassVar[tuple[Kind, ...]]
    form: ClassVar[str]
    label: ClassVar[str]
    hue: ClassVar[tuple[str, str]]
    severity: ClassVar[int] = 3
    sizes: ClassVar[type[int] | type[float] | None] = None
    trainable: ClassVar[bool] = True

    @property
    def size(self) -> float:
        """The number in the variant's name.

        Raises:
            ValueError: there is none.
        """
        if self.variant.size is None:
            raise ValueError(f"{self.variant} has no size")
        return self.variant.size

    @abstractmethod
    def overrides(self) -> dict[str, Any]:
        """Return its entries in a layer's `per_layer_config` (transformers' terms); empty for the parent's shape.

        Raises:
            TangramError: it cannot replace this parent's subblock, or makes nothing smaller.
        """

    @abstractmethod
    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Return the initial weights by their names inside the subblock (`k_proj.weight`, …), without training.

        Those that are computed may be float32 in a parent of low precision: training begins with them unrounded.

        Args:
            parent: the parent's subblock.
            calibration: its inputs and outputs on the training tokens.
        """

    @abstractmethod
    def relative_size(self) -> float:
        """Return its number of weights over that of the parent's subblock; an estimate is enough for the planner."""

    def operations_to_fit(self) -> float:
        """Return the multiply-adds per token that `initialize` takes beyond a pass of the parent, for the planner."""
        return 0.0

    def too_large(self) -> str | None:
        """Return why it is certainly no smaller than the parent's subblock, in words that follow its name; else None.

        The config is refused with these words as soon as the parent's sizes are known.
        """
        return None

    @classmethod
    def accepts(cls, size: int | float | None) -> bool:
        """Whether a name of this family may hold such a size."""
        if cls.sizes is None or size is None:
            return cls.sizes is size
        if cls.sizes is int:
            return isinstance(size, int) and 1 <= size <= LARGEST_COUNT
        return 0 < size < 1

    @classmethod
    def refusal(cls, size: int | float | None, heads: int, kv_heads: int) -> str | None:
        """Return what is wrong with a size, in words that follow the variant's name; None to say nothing more.

        Args:
            size: as in the name, whether it is accepted or not.
            heads: the parent's query heads.
            kv_heads: the parent's key-value heads.
        """
        return None

    @classmethod
    def suggest(cls, number: float | None) -> str | None:
        """Return the name that a user meant who wrote this family with such a number, or without any; None: unknown."""
        if cls.sizes is None:
            return cls.family
        if cls.sizes is int:
            return f"{cls.family}-{64 if number is None else max(1, round(number))}"
        if not number:
            return None
        ratio = number / 100 if number >= 1 else number
        return f"{cls.family}-{0.5 if number in (1, 100) else ratio:g}"


_REQUIRED = ("family", "kinds", "form", "label", "hue")
_Class = TypeVar("_Class", bound=type[Block])
REGISTRY: dict[str, type[Block]] = {}  # by family; `tangram.blocks.registry` fills it before it looks something up


def register(block: _Class) -> _Class:
    """Add a family to the search space; a decorator of its class.

    Raises:
        ValueError: a class attribute is missing, or another class has this family.
    """
    if missing := [name for name in _REQUIRED if not hasattr(block, name)]:
        raise ValueError(f"{block.__name__} does not say its {', '.join(missing)}")
    if not re.fullmatch(_FAMILY, block.family):
        raise ValueError(f"'{block.family}' cannot begin a variant's name: lower-case letters and single hyphens only")
    known = REGISTRY.setdefault(block.family, block)
    if (known.__module__, known.__qualname__) != (block.__module__, block.__qualname__):
        raise ValueError(f"'{block.family}' is already the family of {known.__module__}.{known.__qualname__}")
    return block
