"""The types of the search space: `Variant`, the parsed name of a piece, and `Block`, the base class of all families.

This module imports neither torch nor pandas, since these classes check the config whenever Snakemake starts.
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

Kind: TypeAlias = Literal["attention", "ffn", "head"]
KINDS: tuple[Kind, ...] = ("attention", "ffn")  # of every layer
HEAD: Kind = "head"  # the LM head, once per model
PAIR = "block"  # in tables and folders, beside the kinds: a layer's attention and FFN, trained and scored together
HEAD_SHARD = "00-00"  # the name of the head's only shard in the library and the scores
PARENT, NO_OP = "parent", "no-op"  # the two variants that every search space has
CONFIG_NAME: dict[str, str] = {"attention": "attention", "ffn": "mlp"}  # transformers' names of the kinds in `skip`
PRECISIONS = ("bf16", "int8", "fp8")  # formats of matrices that torch computes in, besides the run's dtype
# Types of GGUF tensors that llama.cpp computes in; torch computes with the rounded values. K-quants need rows of whole
# blocks of 256, and the `gguf` package cannot write them.
GGUF_PRECISIONS = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
ALL_PRECISIONS = (*PRECISIONS, *GGUF_PRECISIONS)
FORMATS = ("gguf", "decilm", "hf")  # of other engines, in which a child can be written
FITTED_TOKENS = 16_384  # tokens per chunk: intermediate values of a whole split would not fit a GPU
LARGEST_COUNT = 999_999_999

_FAMILY = r"[a-z]+(?:-[a-z]+)*"
_NAME = re.compile(rf"({_FAMILY})(?:-([0-9]*\.?[0-9]+))?(?:@([a-z0-9_]+))?")


@dataclass(frozen=True)
class Variant:
    """A parsed name: ``width-0.5`` is ``Variant("width", 0.5)``; `str` returns the canonical name.

    Attributes:
        family: the name of its block, such as ``"no-op"``.
        size: a count (``gqa-1``), a ratio (``width-0.5``), or None.
        precision: the number format of its matrices, such as ``"int8"``; None for the run's dtype.
    """

    family: str
    size: int | float | None = None
    precision: str | None = None

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Parse a name; spellings of one variant (``width-.50``, ``width-0.5``) give equal results.

        Raises:
            ValueError: the text is not a valid name of any family.
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
    def source(self) -> Variant:
        """The variant in the run's dtype, from whose piece that of a variant with a precision is made."""
        return Variant(self.family, self.size)

    @property
    def number(self) -> str:
        """The size as text, such as ``"0.5"``; empty without a size."""
        return "" if self.size is None else f"{Decimal(repr(self.size)):f}"


@dataclass(frozen=True)
class Block(ABC):
    """One alternative to a layer's attention or FFN; a subclass defines a family of alternatives, one per size.

    A subclass sets the class attributes below; those without a default value are required.

    Attributes:
        kind: the kind of subblock that it replaces.
        variant: its parsed name.
        shape: the parent's sizes.
        family: the first part of its variants' names.
        kinds: the kinds of subblocks that it can replace.
        form: the pattern of its variants' names, for documentation and messages: ``"width-R"``.
        label: its name on a small tile of the report, with ``{size}`` for the number; empty for no name.
        hue: its colors in the report, ``#rrggbb``, for the least and the most severe size; the colors of this package
            follow the color-blind safe sets of Okabe and Ito and of Tol.
        severity: rank in the order of the report and of messages, from 0 (the parent's subblock) to 5 (nothing left);
            3 suits most families.
        sizes: ``int`` if a name holds a count, ``float`` if it holds a ratio below 1, None if it has no size.
        trainable: whether training can improve its initial weights.
        uses_moments: whether `initialize` calls `Calibration.moments`; its jobs then share one file of moments.
        pruned: whether `initialize` depends on the settings of pruning, too.
        precisions: the number formats that its matrices can be stored and multiplied in, besides the run's dtype.
        formats: the formats of other engines that can express it exactly.
        part: its form there, if it is not its kind's: empty for nothing, ``linear`` for a linear map, ``unbiased`` for
            one without bias.
        normed: whether the parent's norm stays before it.
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
    uses_moments: ClassVar[bool] = False
    pruned: ClassVar[bool] = False
    precisions: ClassVar[tuple[str, ...]] = ALL_PRECISIONS
    formats: ClassVar[tuple[str, ...]] = FORMATS
    part: ClassVar[str | None] = None
    normed: ClassVar[bool] = True

    @property
    def size(self) -> float:
        """The number in the variant's name.

        Raises:
            ValueError: the name has no number.
        """
        if self.variant.size is None:
            raise ValueError(f"{self.variant} has no size")
        return self.variant.size

    @abstractmethod
    def overrides(self) -> dict[str, Any]:
        """Return its entries in a layer's `per_layer_config` (transformers' terms); empty for the parent's shape.

        Raises:
            TangramError: it cannot replace this parent's subblock, or is not smaller.
        """

    def entries(self) -> dict[str, Any]:
        """Return its entries in the config: `overrides`, and the precision of its matrices.

        A layer's entries are part of its `per_layer_config`; the head's are attributes of the model's config.

        Raises:
            TangramError: see `overrides`.
        """
        precision = self.variant.precision
        if precision is None:
            return self.overrides()
        if self.kind == HEAD:
            return {**self.overrides(), "head_precision": precision}
        return {**self.overrides(), "precision": [f"{CONFIG_NAME[self.kind]}={precision}"]}

    @abstractmethod
    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        """Return the initial weights by their names inside the subblock (`k_proj.weight`, …), without training.

        Computed weights may be float32 even if the parent has a lower precision: training starts from them unrounded.

        Args:
            parent: the parent's subblock.
            calibration: the subblock's inputs, outputs and moments on the training tokens.
        """

    @abstractmethod
    def relative_size(self) -> float:
        """Return its number of weights relative to the parent's subblock; the planner accepts an estimate."""

    def operations_to_fit(self) -> float:
        """Return the multiply-adds per token that `initialize` needs besides a forward pass and moments (planner)."""
        return 0.0

    def too_large(self) -> str | None:
        """Return a message if it is certainly no smaller than the parent's subblock, else None.

        The message continues a sentence that begins with the variant's name. The config check raises it as soon as the
        parent's sizes are available.
        """
        return None

    @classmethod
    def accepts(cls, size: int | float | None) -> bool:
        """Return whether a name of this family may have this size."""
        if cls.sizes is None or size is None:
            return cls.sizes is size
        if cls.sizes is int:
            return isinstance(size, int) and 1 <= size <= LARGEST_COUNT
        return 0 < size < 1

    @classmethod
    def refusal(cls, size: int | float | None, heads: int, kv_heads: int) -> str | None:
        """Return a message about a wrong size, which continues a sentence after the variant's name; None without one.

        Args:
            size: the size in the name, accepted or not.
            heads: the parent's query heads.
            kv_heads: the parent's key-value heads.
        """
        return None

    @classmethod
    def unchanged_length(cls, size: int | float | None) -> int | None:
        """Return a length up to which it computes what the parent does, in tokens; None without one."""
        return None

    @classmethod
    def suggest(cls, number: float | None) -> str | None:
        """Return the probably intended name for this family and a number (or none); None without a suggestion."""
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
REGISTRY: dict[str, type[Block]] = {}  # by family; filled by `tangram.blocks.registry`


def register(block: _Class) -> _Class:
    """Add a family to the search space (class decorator).

    Raises:
        ValueError: a class attribute is missing, or another class has this family.
    """
    if missing := [name for name in _REQUIRED if not hasattr(block, name)]:
        raise ValueError(f"{block.__name__} does not define {', '.join(missing)}")
    if not re.fullmatch(_FAMILY, block.family):
        raise ValueError(f"'{block.family}' cannot begin a variant's name: lower-case letters and single hyphens only")
    registered = REGISTRY.setdefault(block.family, block)
    if (registered.__module__, registered.__qualname__) != (block.__module__, block.__qualname__):
        raise ValueError(f"'{block.family}' is already the family of {registered.__module__}.{registered.__qualname__}")
    return block
