"""How the image studies run: data, many small trainings side by side, and a learning-rate grid for every arm."""

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

    The validation images are some of the file's training images, always the same ones, and in no training split.

    Args:
        path: the file.
        device: where images are put; labels stay on the CPU.
        validation: how many validation images.
        test: how many of the test images, from the first on; all at most.

    Raises:
        TangramError: the file is damaged or too small.
    """
    from tangram_studies.data.fashion_mnist import load_images

    found = load_images(path)
    if validation >= len(found.train_images):
        raise TangramError(f"{path} has {len(found.train_images)} training images, too few for {validation} to tune on")
    order = np.random.default_rng(0).permutation(len(found.train_images))
    used = found.train_images[order[validation:]].astype(np.float32)
    mean, deviation = float(used.mean()), float(used.std())

    def split(images: np.ndarray, labels: np.ndarray) -> Split:
        channels_last = images[..., None] if images.ndim == 3 else images
        tensor = (torch.from_numpy(channels_last.astype(np.float32)) - mean) / deviation
        return Split(tensor.permute(0, 3, 1, 2).contiguous().to(device), torch.from_numpy(labels.astype(np.int64)))

    training = split(found.train_images[order[validation:]], found.train_labels[order[validation:]])
    tuning = split(found.train_images[order[:validation]], found.train_labels[order[:validation]])
    return training, tuning, split(found.test_images[:test], found.test_labels[:test])


# --- many trainings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One training: an arm, its setting, and a seed; judged on the validation split while it is tuned."""

    arm: str
    setting: Setting
    seed: int
    tuning: bool = False


@dataclass
class Outcome:
    """What a run found.

    Attributes:
        scores: by metric.
        curve: (step, value) of the metric that is followed, where it is.
        arrays: for figures.
        seconds: of training alone.
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


def follow(loss: StepLoss, judge: Callable[[], float], outcome: Outcome, every: int) -> StepLoss:
    """Return the loss of a step that also adds what ``judge`` finds, every so many steps, to an outcome's curve.

    The judge's seconds are no part of the outcome's.
    """
    steps = itertools.count()

    def watched(tickets: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        step = next(steps)
        if step % every == 0:
            begin = time.monotonic()
            outcome.curve.append((step, judge()))
            outcome.seconds -= time.monotonic() - begin
        return loss(tickets, generator)

    return watched


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
    """Yield a function that maps jobs in ``count`` processes of one thread each, in order; 1 runs them right here.

    Every job seeds itself, so what comes out does not depend on ``count``.
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


def words(setting: Setting) -> str:
    """Return a setting as it is told to people."""
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())


@dataclass
class Results:
    """Every arm's chosen setting, its outcome on every seed, and what the grid found on the validation split."""

    chosen: dict[str, Setting]
    outcomes: dict[tuple[str, int], Outcome]
    tuning: list[tuple[Run, float]]


def tune_and_repeat(
    perform: Callable[[Run], Outcome],
    arms: Mapping[str, Sequence[Setting]],
    seeds: int,
    objective: str,
    mapped: Map,
    label: str,
) -> Results:
    """Tune every arm on its own grid, on a seed of its own and the validation split; then repeat each at its best.

    Args:
        perform: trains and judges one run; picklable.
        arms: each arm's settings; an arm of one setting is not tuned.
        seeds: repetitions, from 0 on; the seed that tunes is the next one.
        objective: the score that chooses, larger is better.
        mapped: see `workers`.
        label: for the progress bar.
    """
    tuned = [Run(arm, setting, seeds, True) for arm, grid in arms.items() if len(grid) > 1 for setting in grid]
    values = [outcome.scores[objective] for outcome in mapped(perform, tuned, f"{label}: tuning")]
    tuning = list(zip(tuned, values, strict=True))
    chosen = {}
    for arm, settings in arms.items():
        found = [(value, run.setting) for run, value in tuning if run.arm == arm]
        chosen[arm] = max(found, key=lambda pair: pair[0])[1] if found else settings[0]
    runs = [Run(arm, chosen[arm], seed) for seed in range(seeds) for arm in arms]
    outcomes = mapped(perform, runs, f"{label}: {seeds} seeds")
    return Results(chosen, {(run.arm, run.seed): o for run, o in zip(runs, outcomes, strict=True)}, tuning)


def mean_seconds(study: Study, experiment: str, results: Results) -> str:
    """Return every trained arm's mean seconds of training, as told to people."""
    arms = dict.fromkeys(arm for (arm, _), outcome in results.outcomes.items() if outcome.seconds)
    return "; ".join(f"{arm} {study.over_seeds(experiment, 'training (s)', arm).estimate:.1f}" for arm in arms)
