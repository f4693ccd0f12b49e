"""Generalization and cost of factorized networks, compared with dense ones."""

# ruff: noqa: RUF001 - the typographic signs are meant

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from tangram.report.style import number
from tangram.timing import interleaved
from tangram_studies.data.fashion_mnist import Images
from tangram_studies.papers.ntk.network import (
    ARMS,
    DENSE,
    RESTATED,
    U_FIXED,
    V_FIXED,
    Scale,
    TwoLayer,
    image_points,
    unit_points,
)
from tangram_studies.plots import lines_figure
from tangram_studies.study import Claim, Study, interval

EXPERIMENT = "Fashion-MNIST, two classes"


def step_seconds(x: torch.Tensor, y: torch.Tensor, m: int, k: int, seed: int) -> dict[str, float]:
    """Return the median seconds of a descent step by arm, timed round-robin.

    Args:
        x: inputs, ``(n, d)``.
        y: targets, ``(n,)``.
        m: width.
        k: inner width of the factorized arms.
        seed: seed of the weights.
    """

    def step_of(arm: str) -> Callable[[], object]:
        net = TwoLayer(x.shape[1], m, None if arm == DENSE else k, arm, seed)
        return lambda: net.step(x, y, 0.0)

    samples = interleaved({arm: step_of(arm) for arm in ARMS}, repeats=7)
    return {arm: float(np.median(values)) for arm, values in samples.items()}


def generalization(study: Study, seeds: Sequence[int], scale: Scale, images: Images) -> None:
    """Measure the accuracy of kernel regression, its risk bound and the cost of training, dense and factorized."""
    _measure(study, seeds, scale, images)
    _claim_accuracy(study, seeds, scale)
    _claim_cost(study, seeds, scale)


def _measure(study: Study, seeds: Sequence[int], scale: Scale, images: Images) -> None:
    k = scale.ranks[-1]
    for seed in seeds:
        train_x, train_y = image_points(images, scale.train, seed, "train")
        test_x, test_y = image_points(images, scale.test, seed, "test")
        d = train_x.shape[1]
        for arm in ARMS:
            net = TwoLayer(d, scale.image_width, None if arm == DENSE else k, arm, seed)
            kernel = net.kernel(train_x).double()
            kernel += 1e-3 * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
            weights = torch.linalg.solve(kernel, train_y.double())
            predicted = net.kernel(test_x, train_x).double() @ weights
            accuracy = float((predicted.sign() == test_y.double()).double().mean())
            bound = math.sqrt(2 * float(train_y.double() @ weights) / len(train_y))
            for metric, value in (
                ("test accuracy", accuracy),
                ("√(2 yᵀK⁻¹y / n)", bound),
                ("multiply-adds", net.macs),
                ("trained weights", net.trainable),
            ):
                study.record(EXPERIMENT, arm, seed, metric, value)
        for arm, seconds in step_seconds(train_x, train_y, scale.image_width, k, seed).items():
            study.record(EXPERIMENT, arm, seed, "seconds per step", seconds)


def _values(study: Study, metric: str, arm: str) -> np.ndarray:
    rows = study.frame(EXPERIMENT)
    return rows[(rows["arm"] == arm) & (rows["metric"] == metric)].sort_values("seed")["value"].to_numpy()


def _claim_accuracy(study: Study, seeds: Sequence[int], scale: Scale) -> None:
    for short, arm in (("14a", U_FIXED), ("14b", V_FIXED)):
        difference = study.paired(EXPERIMENT, "test accuracy", arm, DENSE)
        bound, dense_bound = (float(_values(study, "√(2 yᵀK⁻¹y / n)", name).mean()) for name in (arm, DENSE))
        accuracy = float(_values(study, "test accuracy", DENSE).mean())
        study.claims.append(
            Claim.from_interval(
                difference,
                above=-0.01,
                claim=f"{short} accuracy, {arm}",
                statement="the factorized kernel generalizes like the dense one (here: loses less than 0.01)",
                where="abstract: 'similar guarantees'",
                measured=f"{difference}; dense {number(accuracy)}; bounds on the risk {number(bound)} and "
                f"{number(dense_bound)}",
                unit="accuracy, factorized − dense",
                seeds=len(seeds),
                note=f"{RESTATED}; pullovers against coats, n = {scale.train}, d = 784, k = {scale.ranks[-1]}, "
                f"m = {scale.image_width}",
            )
        )


def _claim_cost(study: Study, seeds: Sequence[int], scale: Scale) -> None:
    faster = interval(_values(study, "seconds per step", DENSE) / _values(study, "seconds per step", U_FIXED))
    macs = number(_values(study, "multiply-adds", DENSE)[0] / _values(study, "multiply-adds", U_FIXED)[0])
    weights = {arm: _values(study, "trained weights", arm)[0] for arm in (DENSE, U_FIXED, V_FIXED)}
    fewer = " and ".join(f"{number(weights[DENSE] / weights[arm])} x ({arm})" for arm in (U_FIXED, V_FIXED))
    study.claims.append(
        Claim.from_interval(
            faster,
            above=1.0,
            claim="14c cost",
            statement="training costs less: k (m + d) multiply-adds instead of m d",
            where="abstract: 'reducing training and inference resource costs'",
            measured=f"{faster} x as fast per step; {macs} x fewer multiply-adds, {fewer} fewer trained weights",
            unit="times as fast",
            seeds=len(seeds),
            note=f"d = 784, m = {scale.image_width}, k = {scale.ranks[-1]}",
        )
    )


def gain_by_dimension(study: Study, seeds: Sequence[int], scale: Scale) -> None:
    """Measure the speed-up over the dimension; it should grow up to the order of the number of points (abstract)."""
    n, k = scale.points, scale.ranks[1]
    for seed in seeds:
        for d in (n // 4, n, 4 * n):
            x, y = unit_points(n, d, seed), torch.ones(n)
            seconds = step_seconds(x, y, scale.width, k, seed)
            for arm in (U_FIXED, V_FIXED):
                study.record("gain by dimension", arm, seed, "times as fast", seconds[DENSE] / seconds[arm], d / n)
    rows = study.frame("gain by dimension")
    table = rows[rows["arm"] == U_FIXED].pivot(index="seed", columns="x", values="value")
    ratio = interval((table[1.0] / table[0.25]).to_numpy())
    study.claims.append(
        Claim.from_interval(
            ratio,
            above=1.0,
            claim="14d gain by dimension",
            statement="the gain increases when the data's dimension is of the order of the number of points",
            where="abstract",
            measured=f"{ratio}: speed-up at d = n over that at d = n/4",
            unit="ratio of speed-ups",
            seeds=len(seeds),
            note=f"n = {n}, m = {scale.width}, k = {k}; U fixed",
        )
    )
    study.figures.append(
        lines_figure(
            "gain",
            "Speed of a training step beside dense",
            f"Inner width {k}, width {scale.width}, {n} points.",
            {"": rows},
            "d / n",
            "times as fast as dense",
            arms=ARMS,
            log="x",
        )
    )
