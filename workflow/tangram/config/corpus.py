"""Sections `corpus` and `activations`: text, and the parent's hidden states on it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tangram.config.base import Filled, PackageFile, RepositoryId, Section, Unique

SPLITS = ("distill", "score", "finetune", "heldout")


class ParentSamples(Section):
    """Text that the parent writes itself: random first token, then sampling."""

    type: Literal["parent-samples"]
    weight: float = Field(1.0, gt=0, le=1e6, description="Share of the corpus' tokens, relative to the others'.")
    temperature: float = Field(1.0, ge=0.01, le=100, description="Sampling temperature.")
    batch_size: int = Field(64, gt=0, description="Sequences sampled at once.")


class HubText(Section):
    """A dataset on the Hugging Face hub."""

    type: Literal["hub"]
    weight: float = Field(1.0, gt=0, le=1e6, description="Share of the corpus' tokens, relative to the others'.")
    repo: RepositoryId = Field(description="Dataset id.")
    name: str | None = Field(None, description="Dataset configuration.")
    revision: str | None = Field(None, description="Commit, tag or branch.")
    split: str = Field("train", description="Split to read.")
    text_column: str = Field(
        "text", description="Column that holds the text, or conversations: the parent's chat template renders them."
    )


class LocalText(Section):
    """Local text, JSONL or parquet files."""

    type: Literal["local"]
    weight: float = Field(1.0, gt=0, le=1e6, description="Share of the corpus' tokens, relative to the others'.")
    paths: Annotated[tuple[Filled, ...], Unique] = Field(
        min_length=1, description="Files (`.txt`, `.jsonl`, `.parquet`); globs allowed."
    )
    text_column: str = Field(
        "text", description="Column of JSONL and parquet that holds the text, or conversations, as with `hub`."
    )


class PackageText(PackageFile):
    """Named members of a package's archive (BIG-bench: evaluation only, by its canary)."""

    type: Literal["package"]
    weight: float = Field(1.0, gt=0, le=1e6, description="Share of the corpus' tokens, relative to the others'.")
    members: Annotated[tuple[Filled, ...], Unique] = Field(
        min_length=1, description="Paths inside the archive; globs allowed."
    )
    reader: Literal["text", "bigbench-quoref"] = Field(
        "text", description="`text`: each member a document; `bigbench-quoref`: the distinct passages of that task."
    )


class PythonDocs(Section):
    """The documentation that ships with Python itself (`pydoc_data.topics`)."""

    type: Literal["python-docs"]
    weight: float = Field(1.0, gt=0, le=1e6, description="Share of the corpus' tokens, relative to the others'.")


TextSource = Annotated[ParentSamples | HubText | LocalText | PackageText | PythonDocs, Field(discriminator="type")]


class Split(Section):
    """One split of the corpus."""

    tokens: int = Field(gt=0, description="Tokens, rounded up to whole sequences.")
    sources: Annotated[tuple[TextSource, ...], Unique] = Field(min_length=1, description="Texts, mixed by weight.")

    def sequences(self, length: int) -> int:
        """Return how many sequences of so many tokens the split holds."""
        return -(-self.tokens // length)


class Corpus(Section):
    """Text, tokenized and packed to fixed length; split by document, so that no two splits share one."""

    sequence_length: int = Field(256, ge=8, description="Tokens per sequence.")
    cross_documents: bool = Field(
        False, description="Let a packed sequence span several documents, one end-of-sequence token between them."
    )
    distill: Split = Field(description="For block distillation (BLD).")
    score: Split = Field(description="For replace-1-block scores.")
    finetune: Split = Field(description="For end-to-end distillation (GKD).")
    heldout: Split = Field(description="For evaluation only.")

    @model_validator(mode="after")
    def _bigbench_is_for_evaluation(self) -> Corpus:
        for split in ("distill", "score", "finetune"):
            for source in getattr(self, split).sources:
                if isinstance(source, PackageText) and source.package.replace("-", "").startswith("bigbench"):
                    raise ValueError(
                        f"corpus.{split}: BIG-bench's canary forbids training on it; use it in corpus.heldout only"
                    )
        return self

    @model_validator(mode="after")
    def _enough_sequences(self) -> Corpus:
        for name, reason in (
            ("distill", "one to train on, one that only measures the loss"),
            ("score", "one says nothing of the standard error"),
            ("heldout", "one says nothing of the standard error"),
        ):
            if getattr(self, name).sequences(self.sequence_length) < 2:
                raise ValueError(
                    f"{name}.tokens: {getattr(self, name).tokens} tokens are one sequence of {self.sequence_length}; "
                    f"at least {self.sequence_length + 1} are needed for two: {reason}"
                )
        for name in SPLITS:
            split = getattr(self, name)
            total, weights = split.sequences(self.sequence_length), sum(source.weight for source in split.sources)
            for i, source in enumerate(split.sources):
                if total * source.weight < 0.5 * weights:
                    raise ValueError(
                        f"{name}.sources[{i}].weight: {source.weight:g} of {weights:g} is less than half a sequence of "
                        f"the split's {total}; raise it or {name}.tokens, or leave the source out"
                    )
        return self


class Activations(Section):
    """The teacher's hidden states."""

    mode: Literal["cache", "stream"] = Field(
        "cache", description="`cache`: one pass to disk, memory-mapped; `stream`: recomputed where needed."
    )
    batch_size: int = Field(4, gt=0, description="Sequences per forward pass.")
    local_copy: bool = Field(
        False,
        description="Copy the cache to the job's `$TMPDIR` (Snakemake's `tmpdir`: node-local scratch) and read that.",
    )
