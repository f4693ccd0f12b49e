"""Section `finetune`: end-to-end distillation (GKD)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from tangram.config.base import COMPUTE, Section
from tangram.config.library import SpanContrast


class Budget(Section):
    """The length of finetuning, in exactly one of three units."""

    epochs: int | None = Field(None, ge=1, description="Passes over the finetune split.")
    tokens: int | None = Field(
        None,
        gt=0,
        description="Tokens, rounded up to whole sequences; more than `corpus.finetune.tokens` are several passes, "
        "which can make the child worse on other text (docs/evidence/quality.md).",
    )
    minutes: float | None = Field(
        None,
        gt=0,
        description="Minutes of training. The job times some steps first and fixes the number of steps then, so the "
        "child depends on the machine's speed.",
    )

    @model_validator(mode="after")
    def _one_unit(self) -> Budget:
        if sum(value is not None for value in (self.epochs, self.tokens, self.minutes)) != 1:
            raise ValueError("give exactly one of epochs, tokens and minutes, such as {tokens: 30000}")
        return self


class Parallel(Section):
    """Data-parallel finetuning of one child; the loss curve is that of one process at the same batch size."""

    nodes: int = Field(1, gt=0, description="Nodes; more than one needs `--profile slurm`.")
    processes_per_node: int = Field(1, gt=0, description="Processes per node: the number of its GPUs.")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="`ddp`: every process holds the child; `fsdp`: every process holds a shard of it and recomputes "
        "each layer's activations in the backward pass, for children without precisions.",
    )


class Finetune(Section):
    """End-to-end distillation (GKD), Puzzle section 4.3: hidden-state cosine + KL, LM loss off by default."""

    budget: Budget = Field(Budget(epochs=1), description="Length of the training.")
    learning_rate: float = Field(
        1e-4,
        gt=0,
        le=10,
        description="Peak learning rate of AdamW; a short finetuning of a child with `@int8` pieces that has lost much "
        "(KL above 0.3) gains from twice the default.",
    )
    batch_size: int = Field(2, gt=0, description="Sequences per optimizer step.")
    micro_batch_size: int = Field(2, gt=0, description="Sequences per forward pass; must divide batch_size.")
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="Share of the steps with linear warmup.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Learning rate after the warmup: `cosine` to a tenth, `linear` to zero, or `constant`."
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's weight decay.")
    clip_norm: float = Field(1.0, gt=0, description="Gradient norm limit.")
    compute: Literal["float32", "bfloat16"] = Field("float32", description=COMPUTE)
    kl_weight: float = Field(1.0, ge=0, description="Weight of KL(parent || child).")
    cosine_weight: float = Field(1.0, ge=0, description="Weight of the hidden-state cosine loss, mean over layers.")
    lm_weight: float = Field(0.0, ge=0, description="Weight of the language-model loss.")
    checkpoint_seconds: int = Field(
        120, gt=0, description="Seconds between checkpoints, from which a killed job resumes."
    )
    parallel: Parallel = Field(Parallel(), description="Processes that train together.")
    span_contrast: SpanContrast = Field(SpanContrast(), description="Span-contrast loss.")

    @model_validator(mode="before")
    @classmethod
    def _epochs_are_a_unit(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and "epochs" in raw:
            raise ValueError(f"epochs is a unit of budget; write budget: {{epochs: {raw['epochs']}}}")
        return raw

    @model_validator(mode="after")
    def _check(self) -> Finetune:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) must divide batch_size ({self.batch_size})")
        if self.kl_weight + self.cosine_weight + self.lm_weight + self.span_contrast.weight == 0:
            raise ValueError(
                "at least one of kl_weight, cosine_weight, lm_weight, span_contrast.weight must be positive"
            )
        if self.span_contrast.weight and self.parallel.strategy == "fsdp":
            raise ValueError("span_contrast needs the whole child in every process; set parallel.strategy: ddp")
        return self
