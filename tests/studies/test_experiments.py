"""Shared steps of the image studies: splits, grids, tuning and evaluation on separate splits, workers."""

import shlex
import time

import numpy as np
import pytest
import torch
import yaml

from tangram.config import Studies
from tangram.errors import TangramError
from tangram_studies.experiments import (
    Outcome,
    command,
    curves_of,
    follow,
    grid,
    load_splits,
    stopwatch,
    tune_and_repeat,
    workers,
)


@pytest.fixture
def images(tmp_path):
    """Write images of distinct uniform grays, which identify them in the splits."""
    path = tmp_path / "images.npz"
    shades = np.arange(60, dtype=np.uint8)
    pictures = np.broadcast_to(shades[:, None, None], (60, 4, 4))
    labels = (shades % 3).astype(np.uint8)
    test = {"test_images": pictures[40:], "test_labels": labels[40:]}
    np.savez(path, train_images=pictures[:40], train_labels=labels[:40], **test)
    return path


def test_splits_share_no_image_and_keep_their_labels(images):
    training, validation, test = load_splits(str(images), "cpu", 10, 15)
    assert (len(training), len(validation), len(test)) == (30, 10, 15)
    assert training.images.shape == (30, 1, 4, 4)
    shades = [set(split.images[:, 0, 0, 0].tolist()) for split in (training, validation, test)]
    assert len(shades[0] | shades[1] | shades[2]) == 55
    assert training.images.mean().item() == pytest.approx(0, abs=1e-5)
    assert training.images.std().item() == pytest.approx(1, rel=0.01)
    scale = (test.images[1, 0, 0, 0] - test.images[0, 0, 0, 0]).item()  # one shade
    first = test.images[0, 0, 0, 0].item()
    for split in (training, validation, test):
        found = 40 + (split.images[:, 0, 0, 0] - first) / scale
        assert (found.round().long() % 3 == split.labels).all()
    with pytest.raises(TangramError, match="too few for 40 to tune on"):
        load_splits(str(images), "cpu", 40, 15)


def test_grids_are_all_combinations():
    assert grid(a=(1, 2), b=(3,)) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]


def perform(run):
    """An artificial arm: rate 2 is best on the validation split, not on the test split."""
    quality = -((run.setting["rate"] - 2) ** 2) if run.tuning else run.setting["rate"] + run.seed
    return Outcome({"accuracy": quality})


def threads(_):
    return torch.get_num_threads()


@pytest.mark.parametrize("processes", [1, 2])
def test_tuning_sees_the_validation_split_and_a_seed_of_its_own(processes):
    arms = {"one": grid(rate=(1.0, 2.0, 3.0)), "fixed": grid(rate=(7.0,))}
    with workers(processes) as parallel_map:
        found = tune_and_repeat(perform, arms, 3, "accuracy", parallel_map, "test")
        if processes > 1:
            assert parallel_map(threads, [0] * 3, "test") == [1, 1, 1]
    assert found.chosen == {"one": {"rate": 2.0}, "fixed": {"rate": 7.0}}
    assert {run.seed for run, _ in found.tuning} == {3}
    assert [run.setting["rate"] for run, _ in found.tuning] == [1.0, 2.0, 3.0]
    assert {key: outcome.scores["accuracy"] for key, outcome in found.outcomes.items()} == {
        **{("one", seed): 2.0 + seed for seed in range(3)},
        **{("fixed", seed): 7.0 + seed for seed in range(3)},
    }


def test_a_followed_training_is_not_timed_while_it_is_judged():
    outcome = Outcome({})
    judged = iter([0.5, 0.75])

    def judge():
        time.sleep(0.05)
        return next(judged)

    seen = []
    loss = follow(lambda indices, _: (seen.append(indices), {}), judge, outcome, every=2)
    with stopwatch(outcome):
        for step in range(3):
            loss(torch.tensor([step]), torch.Generator())
    assert [int(indices) for indices in seen] == [0, 1, 2]
    assert outcome.curve == [(0, 0.5), (2, 0.75)]
    assert outcome.seconds < 0.05
    curves = curves_of({"one": outcome, "never followed": Outcome({})})
    assert {arm: [(step, found.estimate) for step, found in line] for arm, line in curves.items()} == {
        "one": [(0, 50), (2, 75)]
    }


def test_commands_of_what_is_not_reproduced_suit_the_config():
    words = shlex.split(command("study_triplet", "data/cifar10.npz"))
    given = dict(word.split("=", 1) for word in words[words.index("--config") + 1 :])
    assert yaml.safe_load(given["device"]) == "cuda"
    section = Studies.model_validate(yaml.safe_load(given["studies"]))
    assert (section.scale, section.image_file) == ("full", "data/cifar10.npz")
