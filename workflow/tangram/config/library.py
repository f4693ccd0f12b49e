"""Sections `library`, `scores` and `assembly`: the search space, its pieces, their scores, and the child."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from tangram.blocks import grammar
from tangram.blocks.base import ALL_PRECISIONS, HEAD, KINDS, NO_OP, PARENT, PRECISIONS
from tangram.config.base import COMPUTE, Filled, Section, Unique
from tangram.errors import nearest

_CHOICES = {kind: f"`{'`, `'.join(grammar.forms(kind))}`." for kind in (*KINDS, HEAD)}
_WITH_PRECISION = f" With a precision, the parent's, too: `{PARENT}@{PRECISIONS[0]}`."


def _precision(name: str) -> str:
    if name not in ALL_PRECISIONS:
        raise ValueError(f"'{name}' is not a precision{nearest(name, ALL_PRECISIONS)}")
    return name


Precision = Annotated[str, AfterValidator(_precision)]


class SpanContrast(Section):
    """A contrastive loss: the child's state of a span must be closer to the parent's of that span than of others."""

    loss: ClassVar[str] = "span_contrast"  # name in `tangram.losses`

    weight: float = Field(0.0, ge=0, description="Weight of the span-contrast loss; 0 disables it.")
    projection: int = Field(
        0,
        ge=0,
        description="Dimensions of a learned projection of the hidden states; 0 compares the hidden states themselves.",
    )
    temperature: float = Field(0.1, ge=0.001, le=100, description="Temperature that divides the cosines.")
    spans: int = Field(16, gt=1, description="Spans drawn from each sequence.")
    shortest: int = Field(4, gt=0, description="Minimum span length in tokens.")
    longest: int = Field(32, gt=0, description="Maximum span length in tokens.")
    depths: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Unique] = Field(
        (0.34, 0.67, 1.0),
        min_length=1,
        description="Depths in finetuning at which states are compared, as shares of the layers; 1 is the last layer.",
    )

    @model_validator(mode="after")
    def _lengths(self) -> SpanContrast:
        if self.shortest > self.longest:
            raise ValueError(f"shortest ({self.shortest}) is more than longest ({self.longest})")
        return self


class BlockDistillation(Section):
    """Blockwise local distillation (BLD), Puzzle section 3: each piece is trained in the parent's frozen layer."""

    epochs: int = Field(2, ge=0, description="Passes over the distill split; 0 keeps the closed-form initial weights.")
    learning_rate: float = Field(4e-3, gt=0, le=10, description="Peak learning rate of AdamW.")
    batch_size: int = Field(1, gt=0, description="Sequences per step.")
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="Share of the steps with linear warmup.")
    compute: Literal["float32", "bfloat16"] = Field("float32", description=COMPUTE)
    normalize: Literal["tensor", "token"] = Field(
        "tensor",
        description="Normalize squared errors by the mean square over all tokens (the paper's loss) or per token.",
    )
    ridge: float = Field(
        1e-3,
        ge=0,
        le=1e6,
        description="Ridge strength, relative to the mean squared activation; of maps at least columns per token.",
    )
    holdout_fraction: float = Field(
        0.125, gt=0, lt=1, description="Share of the split that measures the held-out loss."
    )
    checkpoint_seconds: int = Field(
        120,
        gt=0,
        description="Seconds between checkpoints of the layer in training; finished layers are saved at once.",
    )
    span_contrast: SpanContrast = Field(SpanContrast(), description="Span-contrast loss.")


class Pruning(Section):
    """Selection of the channels and heads that `width-R` and `heads-K` keep, from second moments of activations."""

    selection: Literal["obs", "contribution"] = Field(
        "obs",
        description="Channels of an FFN: `obs` removes those whose loss the others can compensate best, and fits the "
        "output matrix anew (optimal brain surgeon); `contribution` keeps those of largest contribution (Puzzle). "
        "Heads are always selected by `obs`.",
    )
    ridge: float = Field(
        0.1, ge=0, le=1e6, description="Ridge strength of `obs`, relative to the mean squared activation."
    )


def _pairs(value: Any) -> Any:
    if isinstance(value, str) and value != "all":
        raise ValueError(f"'{value}' is not a list of pairs; write a list, such as [{value}], or all")
    return value


Pairs = Annotated[tuple[str, ...] | Literal["all"], BeforeValidator(_pairs)]


class Precisions(Section):
    """The precisions in which the parent's subblock and every listed variant are options, if their blocks allow it."""

    attention: Annotated[tuple[Precision, ...], Unique] = Field((), description=f"`{'`, `'.join(ALL_PRECISIONS)}`.")
    ffn: Annotated[tuple[Precision, ...], Unique] = Field((), description=f"`{'`, `'.join(ALL_PRECISIONS)}`.")
    head: Annotated[tuple[Precision, ...], Unique] = Field((), description=f"`{'`, `'.join(ALL_PRECISIONS)}`.")


class Coupled(Section):
    """Coupled BLD, Puzzle section 3: an attention and an FFN variant of one layer, trained together and scored exactly.

    A pair takes the place of its two pieces in layers that have both variants. `tangram pairs` prints the pairs of the
    variants that a finished run's solutions use: the paper's second stage.
    """

    pairs: Pairs = Field(
        (),
        description="Pairs, such as `gqa-1+width-0.5`: variants of `library.attention` and `library.ffn` without "
        "precision; `all`: every pair of them.",
    )
    start: Literal["pieces", "closed-form"] = Field(
        "pieces",
        description="Initial weights: those of the separately trained pieces (two stages), or the closed-form weights "
        "from which these are trained, too (full coupled BLD).",
    )


class Library(Section):
    """The search space: the variants of each kind of subblock and of the LM head, besides the parent's."""

    attention: tuple[str, ...] = Field(
        ("gqa-1", "linear", NO_OP), description=f"{_CHOICES['attention']}{_WITH_PRECISION}"
    )
    ffn: tuple[str, ...] = Field(
        ("width-0.75", "width-0.5", "width-0.25", "linear", NO_OP),
        description=f"{_CHOICES['ffn']}{_WITH_PRECISION}",
    )
    head: tuple[str, ...] = Field((), description=f"LM head: {_CHOICES['head']}")
    precisions: Precisions = Field(Precisions(), description="Precisions of all variants.")
    coupled: Coupled = Field(Coupled(), description="Pairs of variants that are trained together.")
    shared_smoothing: bool = Field(
        False,
        description="Attention of 8 bits: all query heads that read one KV head get the same smoothing factors, as "
        "`export: [decilm]` needs.",
    )
    layers_per_shard: int = Field(32, gt=0, description="Layers per distillation or scoring job.")
    pruning: Pruning = Field(
        Pruning(), description="Selection of channels and heads; a change reruns `width-R` and `heads-K` only."
    )
    bld: BlockDistillation = Field(BlockDistillation(), description="Training of pieces.")

    @field_validator("attention", "ffn", "head")
    @classmethod
    def _one_spelling(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(grammar.canonical, names))

    def listed(self, kind: str) -> tuple[str, ...]:
        """Return the variants of a kind that the config lists by name."""
        names: tuple[str, ...] = getattr(self, kind)
        return names

    def variants(self, kind: str) -> tuple[str, ...]:
        """Return the variants of a kind that are scored and timed, besides the parent's.

        The listed ones come first, then those that `precisions` adds, in the order of the precisions.
        """
        listed, precisions = self.listed(kind), getattr(self.precisions, kind)
        added = [grammar.with_precision(name, precision) for precision in precisions for name in (PARENT, *listed)]
        return tuple(dict.fromkeys([*listed, *filter(None, added)]))

    def distilled(self, kind: str) -> tuple[str, ...]:
        """Return the variants of a kind that are trained: those without precision, and the sources of all others."""
        variants = self.variants(kind)
        without = [name for name in variants if grammar.precision_of(name) is None]
        return tuple(dict.fromkeys([*without, *filter(None, map(grammar.source_of, variants))]))

    def quantized(self, kind: str) -> tuple[str, ...]:
        """Return the variants of a kind that have a precision, made from trained pieces or the parent's weights."""
        return tuple(name for name in self.variants(kind) if grammar.precision_of(name) is not None)

    def plain(self, kind: str) -> tuple[str, ...]:
        """Return the variants of a kind without precision that are scored and timed, besides the parent's."""
        return tuple(name for name in self.variants(kind) if grammar.precision_of(name) is None)

    def pairs(self) -> tuple[str, ...]:
        """Return the pairs that are trained together, in one spelling, such as ``gqa-1+width-0.5``."""
        if self.coupled.pairs == "all":
            both = itertools.product(self.plain("attention"), self.plain("ffn"))
            return tuple(f"{attention}+{ffn}" for attention, ffn in both if {attention, ffn} != {NO_OP})
        return tuple("+".join(map(grammar.canonical, pair.split("+"))) for pair in self.coupled.pairs)

    def check_pairs(self) -> None:
        """Raise a ValueError that names the first pair that cannot be trained."""
        kinds: tuple[str, ...] = KINDS
        for i, pair in enumerate(pairs := self.pairs()):
            where = f"library.coupled.pairs[{i}]: '{pair}'"
            names = pair.split("+")
            if len(names) != len(kinds):
                raise ValueError(f"{where} is not a pair; write ATTENTION+FFN, such as 'gqa-1+width-0.5'")
            for kind, name in zip(kinds, names, strict=True):
                plain = self.plain(kind)
                if name == PARENT:
                    raise ValueError(
                        f"{where}: each piece is trained beside the parent's other subblock anyway; leave it out"
                    )
                if "@" in name:
                    raise ValueError(f"{where}: a pair has no precision; leave '@{name.partition('@')[2]}' out")
                if name not in plain:
                    raise ValueError(
                        f"{where}: '{name}' is not in library.{kind}{nearest(name, plain)}; add it there, or leave the "
                        "pair out"
                    )
            if set(names) == {NO_OP}:
                raise ValueError(f"{where} has no weights to train; leave it out")
            if pair in pairs[:i]:
                raise ValueError(f"{where} appears twice")

    def uniform_precisions(self) -> tuple[str, ...]:
        """Return the precisions in which the parent's attention, its FFN and its head are all options."""
        return tuple(
            precision
            for precision in PRECISIONS
            if all(f"{PARENT}@{precision}" in self.variants(kind) for kind in (*KINDS, HEAD))
        )


class ScoreTasks(Section):
    """Questions for scores by downstream accuracy; each piece answers all of them in place of its subblock."""

    names: Annotated[tuple[Filled, ...], Unique] = Field(
        min_length=1,
        description="Tasks with choices: names in `evaluation.task_archive`, and paths of `.jsonl` files. Scores use "
        "the half of a task's questions that the hash of their text says; they are left out of `evaluation.tasks`.",
    )
    questions: int = Field(
        128, ge=2, description="Questions in all, the same number of each task; the time of scoring grows with them."
    )

    @field_validator("names")
    @classmethod
    def _with_choices(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for i, name in enumerate(names):
            if name.endswith(("/", ".yaml")):
                raise ValueError(f"[{i}]: '{name}' may hold tasks without choices; name a .jsonl file or a task")
        return names

    @model_validator(mode="after")
    def _one_of_each(self) -> ScoreTasks:
        if self.questions < len(self.names):
            raise ValueError(
                f"questions: {self.questions} is less than one for each of {len(self.names)} tasks; raise it"
            )
        return self


class Scores(Section):
    """Replace-1-block scores, Puzzle section 4.2."""

    method: Literal["exact", "screened"] = Field(
        "exact",
        description="`exact` replaces every piece in turn; `screened` estimates the KL of every piece by second order "
        "from one backward pass, and replaces only the pieces that make up 90 % of the score of a target's solution.",
    )
    label_samples: int = Field(
        4, gt=0, description="Sampled labels per position for `screened`; more reduce the noise of the estimates."
    )
    batch_size: int = Field(4, gt=0, description="Sequences per forward pass.")
    position_stride: int = Field(
        4, gt=0, description="Stride of the positions whose logits are compared (LM head, KL)."
    )
    compute: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Data type of matrix products in the parent's layers, but not in the LM head: `bfloat16` is for "
        "devices with units for it. Its own KL (0.0001 for SmolLM2-135M) is part of every score: too much for pieces "
        "with the parent's weights in another precision.",
    )
    tasks: ScoreTasks | None = Field(
        None, description="Also score by answers to questions, for the objectives `accuracy` and `margin`."
    )

    @model_validator(mode="after")
    def _exact_answers(self) -> Scores:
        if self.tasks is not None and self.method == "screened":
            raise ValueError("tasks: screened scores estimate the KL alone; leave tasks out, or set method: exact")
        return self


class Assembly(Section):
    """How a solution's pieces become a child."""

    compensate: bool = Field(
        False,
        description="Fit the last matrix before removed subblocks to the parent's hidden states behind them, on the "
        "distill split. Costs do not change. Not for families with norms behind their subblocks (Gemma, OLMo 2).",
    )
    ridge: float = Field(
        3.0,
        gt=0,
        le=1e6,
        description="Ridge of `compensate` towards the piece's matrix, relative to its mean squared input.",
    )
