"""Shared steps of the image studies: data, parallel small trainings, and a learning-rate grid for every arm."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tangram.cli import use_threads
from tangram.errors import TangramError
from tangram_studies.metric_learning.training import StepLoss
from tangram_studies.study import Interval, Study

Setting = dict[str, float]
Map = Callable[[Callable[[Any], Any], Sequence[Any], str], list[Any]]


# --- data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Images ``(n, channels, height, width)``, float32, of mean 0 and variance 1 over all training pixels; labels."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: torch.Tensor) -> Split:
        """Return some of the examples."""
        return Split(self.images[indices.to(self.images.device)], self.labels[indices])


@functools.lru_cache(maxsize=4)
def load_splits(path: str, device: str, validation: int, test: int) -> tuple[Split, Split, Split]:
    """Return (training, validation, test) splits of an npz that `images.load_images` reads.

    The validation images are a fixed subset of the file's training images, and are not in the training split.

    Args:
        path: the npz file.
        device: device of the images; labels stay on the CPU.
        validation: number of validation images.
        test: number of test images, from the first on; at most all.

    Raises:
        TangramError: the file is damaged or too small.
    """
    from tangram_studies.data.fashion_mnist import load_images

    images = load_images(path)
    if validation >= len(images.train_images):
        raise TangramError(
            f"{path} has {len(images.train_images)} training images, too few for {validation} to tune on"
        )
    order = np.random.default_rng(0).permutation(len(images.train_images))
    training_pixels = images.train_images[order[validation:]].astype(np.float32)
    mean, deviation = float(training_pixels.mean()), float(training_pixels.std())

    def split(pixels: np.ndarray, labels: np.ndarray) -> Split:
        channels_last = pixels[..., None] if pixels.ndim == 3 else pixels
        tensor = (torch.from_numpy(channels_last.astype(np.float32)) - mean) / deviation
        return Split(tensor.permute(0, 3, 1, 2).contiguous().to(device), torch.from_numpy(labels.astype(np.int64)))

    training = split(images.train_images[order[validation:]], images.train_labels[order[validation:]])
    tuning = split(images.train_images[order[:validation]], images.train_labels[order[:validation]])
    return training, tuning, split(images.test_images[:test], images.test_labels[:test])


# --- many trainings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One training: an arm, its setting and a seed; tuning runs are evaluated on the validation split."""

    arm: str
    setting: Setting
    seed: int
    tuning: bool = False


@dataclass
class Outcome:
    """The measurements of a run.

    Attributes:
        scores: values by metric.
        curve: (step, value) of a metric evaluated during training; empty where none is.
        arrays: data for figures, by name.
        seconds: training time, without evaluation.
    """

    scores: dict[str, float]
    curve: list[tuple[int, float]] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0


@contextmanager
def stopwatch(outcome: Outcome) -> Iterator[None]:
    """Add the seconds that the body takes to an outcome."""
    begin = time.monotonic()
    yield
    outcome.seconds += time.monotonic() - begin


def follow(loss: StepLoss, evaluate: Callable[[], float], outcome: Outcome, every: int) -> StepLoss:
    """Return a step's loss that also adds the value of ``evaluate`` to an outcome's curve every ``every`` steps.

    The outcome's seconds exclude evaluation.
    """
    steps = itertools.count()

    def followed(indices: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        step = next(steps)
        if step % every == 0:
            begin = time.monotonic()
            outcome.curve.append((step, evaluate()))
            outcome.seconds -= time.monotonic() - begin
        return loss(indices, generator)

    return followed


def curves_of(outcomes: Mapping[str, Outcome]) -> dict[str, list[tuple[float, Interval]]]:
    """Return the curves of outcomes by arm, in percent, for `plots.draw_series`; arms without one are left out."""
    return {
        arm: [(step, Interval(100 * value, 100 * value, 100 * value)) for step, value in outcome.curve]
        for arm, outcome in outcomes.items()
        if outcome.curve
    }


def _start_worker() -> None:
    """Give a worker one thread in every library."""
    from threadpoolctl import threadpool_limits

    use_threads(1)
    threadpool_limits(1)


@contextmanager
def workers(count: int) -> Iterator[Map]:
    """Yield a function that maps jobs in ``count`` processes of one thread each, in order; 1 uses this process.

    Every job seeds itself, so the results do not depend on ``count``.
    """
    from threadpoolctl import threadpool_limits

    if count <= 1:
        with threadpool_limits(1):
            yield lambda function, jobs, label: [function(job) for job in tqdm(jobs, desc=label, mininterval=5)]
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, initializer=_start_worker) as pool:
        yield lambda function, jobs, label: list(
            tqdm(pool.map(function, jobs), total=len(jobs), desc=label, mininterval=5)
        )


def grid(**axes: Sequence[float]) -> list[Setting]:
    """Return every combination of the axes' values."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def command(study: str, file: str) -> str:
    """Return the command that runs an image study at full scale on a GPU, on a file of images: `studies.image_file`."""
    return f"snakemake -c1 {study} --config device=cuda 'studies={{scale: full, image_file: {file}}}'"


def describe(setting: Setting) -> str:
    """Return a setting as text for reports."""
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())


@dataclass
class Results:
    """Every arm's chosen setting, its outcome on every seed, and the scores of the grid on the validation split."""

    chosen: dict[str, Setting]
    outcomes: dict[tuple[str, int], Outcome]
    tuning: list[tuple[Run, float]]


def tune_and_repeat(
    perform: Callable[[Run], Outcome],
    arms: Mapping[str, Sequence[Setting]],
    seeds: int,
    objective: str,
    parallel_map: Map,
    label: str,
) -> Results:
    """Tune every arm on its grid, with a separate seed and the validation split; then repeat each at its best setting.

    Args:
        perform: trains and evaluates one run; picklable.
        arms: each arm's settings; an arm of one setting is not tuned.
        seeds: number of repetitions, with seeds from 0 on; tuning uses the next seed.
        objective: name of the score to maximize.
        parallel_map: see `workers`.
        label: label of the progress bar.
    """
    tuned = [Run(arm, setting, seeds, True) for arm, grid in arms.items() if len(grid) > 1 for setting in grid]
    values = [outcome.scores[objective] for outcome in parallel_map(perform, tuned, f"{label}: tuning")]
    tuning = list(zip(tuned, values, strict=True))
    chosen = {}
    for arm, settings in arms.items():
        scores = [(value, run.setting) for run, value in tuning if run.arm == arm]
        chosen[arm] = max(scores, key=lambda pair: pair[0])[1] if scores else settings[0]
    runs = [Run(arm, chosen[arm], seed) for seed in range(seeds) for arm in arms]
    outcomes = parallel_map(perform, runs, f"{label}: {seeds} seeds")
    return Results(chosen, {(run.arm, run.seed): o for run, o in zip(runs, outcomes, strict=True)}, tuning)


def mean_seconds(study: Study, experiment: str, results: Results) -> str:
    """Return every trained arm's mean seconds of training, as text for reports."""
    arms = dict.fromkeys(arm for (arm, _), outcome in results.outcomes.items() if outcome.seconds)
    return "; ".join(f"{arm} {study.over_seeds(experiment, 'training (s)', arm).estimate:.1f}" for arm in arms)
