"""Sections `library` and `scores`: the search space, the training of its pieces, and their quality."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tangram.blocks import grammar
from tangram.blocks.base import KINDS, NO_OP
from tangram.config.base import Section, Unique

_CHOICES = {kind: f"`{'`, `'.join(grammar.forms(kind))}`." for kind in KINDS}


class SpanContrast(Section):
    """A term in distillation: a span's hidden state must be nearer the parent's of that span than of other spans."""

    loss: ClassVar[str] = "span_contrast"  # as it is registered in `tangram.losses`

    weight: float = Field(0.0, ge=0, description="Of the term; 0 leaves it out.")
    projection: int = Field(
        0,
        ge=0,
        description="Dimensions of a learned head in which spans are compared; 0 compares hidden states as such.",
    )
    temperature: float = Field(0.1, ge=0.001, le=100, description="Divides the cosines.")
    spans: int = Field(16, gt=1, description="Spans drawn from each sequence.")
    shortest: int = Field(4, gt=0, description="Tokens of a span at least.")
    longest: int = Field(32, gt=0, description="Tokens of a span at most.")
    depths: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Unique] = Field(
        (0.34, 0.67, 1.0), min_length=1, description="Where the whole child is compared; 1 is its last layer's output."
    )

    @model_validator(mode="after")
    def _lengths(self) -> SpanContrast:
        if self.shortest > self.longest:
            raise ValueError(f"shortest ({self.shortest}) is more than longest ({self.longest})")
        return self


class BlockDistillation(Section):
    """Blockwise local distillation (BLD), Puzzle section 3: each subblock beside the parent's frozen other one."""

    epochs: int = Field(2, ge=0, description="Passes over the distill split; 0 keeps the closed-form initial weights.")
    learning_rate: float = Field(4e-3, gt=0, le=10, description="Peak learning rate of AdamW.")
    batch_size: int = Field(1, gt=0, description="Sequences per step.")
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="Share of the steps with a rising learning rate.")
    normalize: Literal["tensor", "token"] = Field(
        "tensor",
        description="Divide squared errors by the mean over all tokens (the paper's loss) or by each token's own.",
    )
    ridge: float = Field(1e-3, ge=0, le=1e6, description="Ridge strength, relative to the mean squared activation.")
    holdout_fraction: float = Field(0.125, gt=0, lt=1, description="Share of the split that only measures the loss.")
    checkpoint_seconds: int = Field(
        120, gt=0, description="Time between states of the layer in training; finished layers are kept as they come."
    )
    span_contrast: SpanContrast = Field(SpanContrast(), description="Contrast of spans, beside the block's own loss.")


class Library(Section):
    """The search space: what may stand in for each subblock. The parent's own subblock is always a choice."""

    attention: tuple[str, ...] = Field(("gqa-1", "linear", NO_OP), description=_CHOICES["attention"])
    ffn: tuple[str, ...] = Field(
        ("width-0.75", "width-0.5", "width-0.25", "linear", NO_OP),
        description=_CHOICES["ffn"],
    )
    layers_per_shard: int = Field(32, gt=0, description="Layers that one distillation or scoring job takes.")
    bld: BlockDistillation = Field(BlockDistillation(), description="How pieces are trained.")

    @field_validator("attention", "ffn")
    @classmethod
    def _one_spelling(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(grammar.canonical, names))


class Scores(Section):
    """Replace-1-block scores, Puzzle section 4.2."""

    batch_size: int = Field(4, gt=0, description="Sequences per forward pass.")
    position_stride: int = Field(4, gt=0, description="Every how many positions logits are compared (LM head, KL).")
