"""Natural images and digits from BIG-bench's sdist, for studies only: its canary forbids training text models on it.

CIFAR-10's 10,000 test images (task `cifar10_classification`) are split into 8,000 for training and 2,000 for testing,
so accuracies on them are not comparable to published ones. Of `mnist_ascii`, the 35,038 digits at full resolution are
taken, binarized, with MNIST's split into training and test images.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tangram.archives import fetch_archive, read_members
from tangram.cli import run
from tangram.config import PackageFile
from tangram.errors import TangramError
from tangram.files import atomic_path, check_writable
from tangram.provenance import provenance

CIFAR10 = "*/cifar10_classification/base64/task.json"
MNIST = "*/mnist_ascii/task.json"
MNIST_TRAINING = 60_000  # the task's first examples are MNIST's training images, in their order
CIFAR10_TEST_SHARE = 0.2


def _label(example: Mapping[str, Any]) -> int:
    scores = example["target_scores"]
    return list(scores).index(max(scores, key=scores.get))


def read_cifar10(data: bytes) -> dict[str, np.ndarray]:
    """Return CIFAR-10's test images from the task file, split into training and test images within every class.

    Returns:
        ``train_images``, ``test_images`` ``(n, 32, 32, 3)`` and ``train_labels``, ``test_labels`` ``(n,)``, uint8.

    Raises:
        TangramError: the file is not that task.
    """
    from PIL import Image

    try:
        examples = json.loads(data)["examples"]
        pictures = [Image.open(io.BytesIO(base64.b64decode(e["input"], validate=True))) for e in examples]
        images = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
        labels = np.array([_label(example) for example in examples], dtype=np.uint8)
    except (ValueError, KeyError, TypeError, OSError, binascii.Error) as error:
        raise TangramError(f"{CIFAR10} is not BIG-bench's CIFAR-10 ({error!r}); check the archive") from error
    random = np.random.default_rng(0)
    test = np.zeros(len(images), dtype=bool)
    for label in np.unique(labels):
        of_class = random.permutation(np.flatnonzero(labels == label))
        test[of_class[: round(CIFAR10_TEST_SHARE * len(of_class))]] = True
    order = random.permutation(len(images))  # the file may be sorted by class
    train, test_order = order[~test[order]], order[test[order]]
    return {
        "train_images": images[train],
        "train_labels": labels[train],
        "test_images": images[test_order],
        "test_labels": labels[test_order],
    }


def read_mnist(data: bytes) -> dict[str, np.ndarray]:
    """Return the digits of 28 × 28 characters of the task file, with 255 for ink and 0 for background.

    The other digits are at half resolution. Test images that are also training images are left out.

    Returns:
        ``train_images``, ``test_images`` ``(n, 28, 28)`` and ``train_labels``, ``test_labels`` ``(n,)``, uint8.

    Raises:
        TangramError: the file is not that task.
    """
    images: list[list[np.ndarray]] = [[], []]
    labels: list[list[int]] = [[], []]
    training_texts: set[str] = set()
    try:
        for index, example in enumerate(json.loads(data)["examples"]):
            text = example["input"]
            lines = text.strip("\n").split("\n")
            if len(lines) != 28 or any(len(line) != 28 for line in lines):
                continue
            test = index >= MNIST_TRAINING
            if not test:
                training_texts.add(text)
            elif text in training_texts:
                continue
            ink = np.frombuffer("".join(lines).encode("ascii"), dtype=np.uint8) != ord(" ")
            images[test].append(ink.reshape(28, 28).astype(np.uint8) * 255)
            labels[test].append(_label(example))
        train_images, test_images = (np.stack(part) for part in images)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TangramError(f"{MNIST} is not BIG-bench's MNIST ({error!r}); check the archive") from error
    train_labels, test_labels = (np.array(part, dtype=np.uint8) for part in labels)
    return {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
    }


READERS = {"cifar10": (CIFAR10, read_cifar10), "mnist": (MNIST, read_mnist)}


def unpack(archive: str | Path, outputs: Mapping[str, str | Path], made_by: Mapping[str, str]) -> None:
    """Write image sets from BIG-bench's sdist as npz files for `fashion_mnist.load_images`, atomically.

    Args:
        archive: path of the sdist.
        outputs: paths of the files to write, by name of the set in `READERS`.
        made_by: flat metadata for the files.

    Raises:
        TangramError: the archive is damaged, or lacks a task.
    """
    members = dict(read_members(archive, [READERS[name][0] for name in outputs]))
    for name, output in outputs.items():
        pattern, read = READERS[name]
        data = next(content for member, content in members.items() if member.endswith(pattern.removeprefix("*")))
        arrays: dict[str, Any] = read(data)
        with atomic_path(output) as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(stream, **arrays, provenance=np.array(json.dumps(dict(made_by), sort_keys=True)))


def fetch_bigbench_images(
    archive: Annotated[str, typer.Option(help="config entry `studies.image_archive` as JSON")],
    pictures: Annotated[str, typer.Option(help="natural images to write (npz)")],
    digits: Annotated[str, typer.Option(help="digits to write (npz)")],
) -> None:
    """Write train_images, train_labels, test_images and test_labels of both sets as unsigned bytes."""
    for output in (pictures, digits):
        check_writable(output)
    source = fetch_archive(PackageFile.model_validate_json(archive))
    made_by = provenance("tangram_studies.data.bigbench_images", archive)
    unpack(source, {"cifar10": pictures, "mnist": digits}, made_by)


if __name__ == "__main__":
    run(fetch_bigbench_images)
