"""Sections `corpus` and `activations`: text, and the parent's hidden states on it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tangram.config.base import Filled, PackageFile, RepositoryId, Section, Unique

SPLITS = ("distill", "score", "finetune", "heldout")


class ParentSamples(Section):
    """Text sampled from the parent, after a random first token."""

    type: Literal["parent-samples"]
    weight: float = Field(1.0, gt=0, le=1e6, description="Weight of this source among the split's sources.")
    temperature: float = Field(1.0, ge=0.01, le=100, description="Sampling temperature.")
    batch_size: int = Field(64, gt=0, description="Sequences per batch of sampling.")


class HubText(Section):
    """A dataset on the Hugging Face hub."""

    type: Literal["hub"]
    weight: float = Field(1.0, gt=0, le=1e6, description="Weight of this source among the split's sources.")
    repo: RepositoryId = Field(description="Dataset id.")
    name: str | None = Field(None, description="Dataset configuration.")
    revision: str | None = Field(None, description="Commit, tag or branch.")
    split: str = Field("train", description="Split to read.")
    text_column: str = Field(
        "text", description="Column of texts or of conversations; the parent's chat template renders conversations."
    )


class LocalText(Section):
    """Local text, JSONL or parquet files."""

    type: Literal["local"]
    weight: float = Field(1.0, gt=0, le=1e6, description="Weight of this source among the split's sources.")
    paths: Annotated[tuple[Filled, ...], Unique] = Field(
        min_length=1, description="Files (`.txt`, `.jsonl`, `.parquet`); globs allowed."
    )
    text_column: str = Field(
        "text", description="Column of texts or of conversations in JSONL and parquet files, as for `hub`."
    )


class PackageText(PackageFile):
    """Members of a package's archive; BIG-bench's canary allows its texts for evaluation only."""

    type: Literal["package"]
    weight: float = Field(1.0, gt=0, le=1e6, description="Weight of this source among the split's sources.")
    members: Annotated[tuple[Filled, ...], Unique] = Field(
        min_length=1, description="Paths inside the archive; globs allowed."
    )
    reader: Literal["text", "bigbench-quoref"] = Field(
        "text",
        description="`text`: each member is a document; `bigbench-quoref`: each distinct passage of that task is one.",
    )


class PythonDocs(Section):
    """The documentation that ships with Python itself (`pydoc_data.topics`)."""

    type: Literal["python-docs"]
    weight: float = Field(1.0, gt=0, le=1e6, description="Weight of this source among the split's sources.")


TextSource = Annotated[ParentSamples | HubText | LocalText | PackageText | PythonDocs, Field(discriminator="type")]


def is_bigbench(source: TextSource) -> bool:
    """Return whether a source is BIG-bench, as a package or on the hub."""
    name = source.package if isinstance(source, PackageText) else ""
    if isinstance(source, HubText):
        name = source.repo.rpartition("/")[2].lower()
    return name.replace("-", "").replace("_", "").startswith("bigbench")


class Split(Section):
    """One split of the corpus."""

    tokens: int = Field(gt=0, description="Number of tokens, rounded up to whole sequences.")
    sources: Annotated[tuple[TextSource, ...], Unique] = Field(
        min_length=1, description="Sources of text, mixed by weight."
    )
    sequence_length: int | None = Field(
        None,
        ge=8,
        description="Tokens per sequence of this split; null: `corpus.sequence_length`. Attention is best scored on "
        "sequences as long as those that the child will read.",
    )

    def length(self, default: int) -> int:
        """Return the tokens per sequence, where ``default`` is `corpus.sequence_length`."""
        return self.sequence_length or default

    def sequences(self, default: int) -> int:
        """Return the number of sequences, where ``default`` is `corpus.sequence_length`."""
        return -(-self.tokens // self.length(default))


class Packing(Section):
    """The form of the sequences of all splits."""

    sequence_length: int = Field(256, ge=8, description="Tokens per sequence.")
    cross_documents: bool = Field(
        False, description="Pack several documents into a sequence, separated by an end-of-sequence token."
    )
    min_document_tokens: int = Field(
        1, ge=1, description="Shorter documents are left out; special tokens of the document count."
    )
    duplicates: Literal["exact", "whitespace"] = Field(
        "exact",
        description="Documents that count as one, in one split, once: of equal text (`exact`), or of text that differs "
        "only in white space (`whitespace`).",
    )


class Corpus(Packing):
    """Tokenized text, packed to sequences of fixed length; no two splits share a document."""

    distill: Split = Field(description="For block distillation (BLD).")
    score: Split = Field(description="For replace-1-block scores.")
    finetune: Split = Field(description="For end-to-end distillation (GKD).")
    heldout: Split = Field(description="For evaluation only.")

    @model_validator(mode="after")
    def _bigbench_is_for_evaluation(self) -> Corpus:
        for split in ("distill", "score", "finetune"):
            for source in getattr(self, split).sources:
                if is_bigbench(source):
                    raise ValueError(
                        f"corpus.{split}: BIG-bench's canary forbids training on it; use it in corpus.heldout only"
                    )
        return self

    @model_validator(mode="after")
    def _enough_sequences(self) -> Corpus:
        for name, reason in (
            ("distill", "one to train on, one to measure the held-out loss"),
            ("score", "a standard error needs two"),
            ("heldout", "a standard error needs two"),
        ):
            split = getattr(self, name)
            if split.sequences(self.sequence_length) < 2:
                length = split.length(self.sequence_length)
                raise ValueError(
                    f"{name}.tokens: {split.tokens} tokens are one sequence of {length}; at least {length + 1} are "
                    f"needed for two: {reason}"
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
    """The parent's hidden states."""

    mode: Literal["cache", "stream"] = Field(
        "cache", description="`cache`: stored on disk once and memory-mapped; `stream`: recomputed in every job."
    )
    batch_size: int = Field(4, gt=0, description="Sequences per forward pass.")
    local_copy: bool = Field(
        False,
        description="Copy the cache to the job's `$TMPDIR` (Snakemake's `tmpdir`, on node-local scratch) before use.",
    )
