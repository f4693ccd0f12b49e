"""Images from a synthetic sdist of BIG-bench: decoding, splits, duplicates, damage."""

import base64
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from tangram.errors import TangramError
from tangram_studies.data import bigbench_images
from tangram_studies.data.bigbench_images import read_cifar10, read_mnist, unpack
from tangram_studies.data.fashion_mnist import load_images

RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
NAMES = ("airplane", "bird")


def scores(label, names):
    return {name: int(i == label) for i, name in enumerate(names)}


def png(picture):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "png")
    return base64.b64encode(stream.getvalue()).decode()


def cifar10():
    examples = [{"input": png(p), "target_scores": scores(i // 10, NAMES)} for i, p in enumerate(PICTURES)]
    return json.dumps({"canary": "…", "examples": examples}).encode()


def digit(ink, lines=28):
    rows = np.full((lines, 28), " ")
    rows[3, :ink] = "B"
    return "\n" + "\n".join("".join(row) for row in rows) + "\n"


def mnist(*inputs):
    examples = [{"input": text, "target_scores": scores(i % 10, range(10))} for i, text in enumerate(inputs)]
    return json.dumps({"examples": examples}).encode()


def test_pictures_are_divided_anew_within_classes_without_loss():
    found = read_cifar10(cifar10())
    assert np.bincount(found["train_labels"]).tolist() == [8, 8]
    assert np.bincount(found["test_labels"]).tolist() == [2, 2]
    whole = np.concatenate([found["train_images"], found["test_images"]])
    labels = np.concatenate([found["train_labels"], found["test_labels"]])
    for picture, label in zip(whole, labels, strict=True):
        (index,) = np.flatnonzero((picture == PICTURES).all((1, 2, 3)))
        assert label == index // 10
    assert len(np.unique(whole, axis=0)) == 20
    assert (read_cifar10(cifar10())["train_images"] == found["train_images"]).all()


def test_only_whole_digits_are_taken_and_none_is_on_both_sides(monkeypatch):
    monkeypatch.setattr(bigbench_images, "MNIST_TRAINING", 3)
    found = read_mnist(mnist(digit(1), digit(2, lines=12), digit(3), digit(4), digit(3), digit(5)))
    assert found["train_images"].shape == (2, 28, 28)
    assert found["train_labels"].tolist() == [0, 2]
    assert (found["train_images"] == 255).sum((1, 2)).tolist() == [1, 3]
    assert (found["test_images"] == 255).sum((1, 2)).tolist() == [4, 5]
    assert found["test_labels"].tolist() == [3, 5]


def test_both_sets_are_written_for_the_studies_to_read(tmp_path, monkeypatch):
    monkeypatch.setattr(bigbench_images, "MNIST_TRAINING", 1)
    archive = tmp_path / "bigbench-1.0.0.tar.gz"
    tasks = {"cifar10_classification/base64": cifar10(), "mnist_ascii": mnist(digit(1), digit(2))}
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in tasks.items():
            info = tarfile.TarInfo(f"bigbench-1.0.0/bigbench/benchmark_tasks/{name}/task.json")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    outputs = {name: tmp_path / f"{name}.npz" for name in ("cifar10", "mnist")}
    unpack(archive, outputs, {"tangram.command": "test"})
    assert load_images(outputs["cifar10"]).train_images.shape == (16, 32, 32, 3)
    assert load_images(outputs["mnist"]).test_images.shape == (1, 28, 28)


@pytest.mark.parametrize("read", [read_cifar10, read_mnist])
@pytest.mark.parametrize("data", [b"no json", b'{"examples": [{"input": "?"}]}', b'{"examples": []}', b"[]"])
def test_other_files_are_refused(read, data):
    with pytest.raises(TangramError, match="is not BIG-bench's"):
        read(data)
