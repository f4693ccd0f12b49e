"""Section `text_trials`: texts that are compared before a run distils on one of them."""

from __future__ import annotations

from pydantic import Field, field_validator

from tangram.config.base import Name, Section
from tangram.config.corpus import TextSource, is_bigbench


class TextTrials(Section):
    """Candidate texts (`snakemake try_texts`): each trains the same child for the same tokens.

    The child is the parent without some of its middle layers. It is trained with the settings of `finetune` except its
    budget: one pass over `tokens`. It is evaluated on the run's held-out split and on held-out text of its own source.
    """

    sources: dict[Name, TextSource] = Field({}, description="Candidates by name; their weights have no effect.")
    tokens: int = Field(3072, gt=0, description="Training tokens of a draw, rounded up to whole sequences.")
    heldout_tokens: int = Field(1024, gt=0, description="Tokens of each source's own held-out text.")
    draws: int = Field(3, ge=2, le=100, description="Draws of text, each of another order; intervals need two.")
    removed: float = Field(
        0.1, gt=0, lt=1, description="Share of the parent's layers that the child lacks, in the middle; at least one."
    )

    @field_validator("sources")
    @classmethod
    def _candidates(cls, sources: dict[str, TextSource]) -> dict[str, TextSource]:
        if len(sources) == 1:
            raise ValueError("one text cannot be compared; name at least two, such as the corpus' own source")
        for name, source in sources.items():
            if is_bigbench(source):
                raise ValueError(f"{name}: BIG-bench's canary forbids training on it; use it in corpus.heldout only")
        return sources
