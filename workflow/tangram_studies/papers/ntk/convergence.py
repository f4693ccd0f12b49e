"""Gradient descent: its rate compared with the kernel's prediction, and the drift of the kernel in training."""

# ruff: noqa: RUF001 - the typographic signs are meant

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tangram_studies.papers.ntk.network import (
    ARMS,
    DENSE,
    RESTATED,
    U_FIXED,
    V_FIXED,
    Scale,
    TwoLayer,
    decay,
    distance,
    least_eigenvalue,
    unit_points,
)
from tangram_studies.plots import lines_figure
from tangram_studies.study import Claim, Study, interval


@dataclass(frozen=True)
class Descent:
    """One training by full-batch gradient descent, with the rates that its kernels predict."""

    rate: float
    predicted_first: float
    predicted_last: float
    drift: float
    movement: float
    final: float


def descend(net: TwoLayer, x: torch.Tensor, y: torch.Tensor, steps: int) -> tuple[Descent, list[float]]:
    """Train with the largest safe step, ``1 / λ_max``; rates are of ``log ‖f − y‖²`` per step, on the last half.

    The slowest mode of the linearized dynamics falls by ``2 log(1 − η λ_min)``.
    """
    first, begin = net.kernel(x), net.trained
    eigenvalues = torch.linalg.eigvalsh(first.double())
    rate = 1 / float(eigenvalues[-1])
    losses = [net.step(x, y, rate) for _ in range(steps)]
    last = net.kernel(x)
    floor = 1e-10 * losses[0]  # resolution of float32
    usable = [i for i in range(len(losses) // 2, len(losses)) if losses[i] > floor]
    if len(usable) < 8:
        usable = [i for i in range(len(losses)) if losses[i] > floor][-16:]
    slope = float(np.polyfit(usable, np.log([losses[i] for i in usable]), 1)[0])
    predictions = [
        2 * math.log1p(-min(rate * max(least_eigenvalue(kernel), 0.0), 0.999999)) for kernel in (first, last)
    ]
    movement = float((net.trained - begin).norm(dim=1).max() / begin.norm(dim=1).mean())
    return Descent(slope, predictions[0], predictions[1], distance(last, first), movement, losses[-1]), losses


def descents(study: Study, seeds: Sequence[int], scale: Scale) -> None:
    """Measure linear convergence against the kernel's prediction, and the kernel's drift over m and k."""
    middle = scale.ranks[len(scale.ranks) // 2]
    ratios = _measure(study, seeds, scale, middle)
    _claim_rates(study, seeds, scale, middle, ratios)
    _claim_drift(study, seeds, scale, middle)
    _draw(study, scale, middle)


def _measure(study: Study, seeds: Sequence[int], scale: Scale, middle: int) -> dict[str, list[float]]:
    """Record descents by inner width and by width; return measured over predicted rates at the inner width `middle`."""
    n = scale.points
    ratios: dict[str, list[float]] = {}
    for seed in seeds:
        x = unit_points(n, n, seed)
        y = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
        for arm in ARMS:
            for k in scale.ranks if arm != DENSE else scale.ranks[:1]:
                net = TwoLayer(n, scale.width, None if arm == DENSE else k, arm, seed)
                run, losses = descend(net, x, y, scale.steps)
                study.record("drift by k", arm, seed, "‖K_T − K_0‖ / ‖K_0‖", run.drift, k)
                study.record("rate by k", f"{arm}: measured", seed, "per step", -run.rate, k)
                study.record("rate by k", f"{arm}: from K_0", seed, "per step", -run.predicted_first, k)
                study.record("rate by k", f"{arm}: from K_T", seed, "per step", -run.predicted_last, k)
                if k == middle or arm == DENSE:
                    for step in range(0, len(losses), max(1, scale.steps // 12)):
                        study.record("loss curve", arm, seed, "‖f − y‖² / ‖y‖²", max(losses[step] / n, 1e-12), step)
                if k == middle:
                    ratios.setdefault(f"{arm} K_0", []).append(run.rate / run.predicted_first)
                    ratios.setdefault(f"{arm} K_T", []).append(run.rate / run.predicted_last)
            for m in scale.widths:
                net = TwoLayer(n, m, None if arm == DENSE else middle, arm, seed)
                run, _ = descend(net, x, y, scale.steps)
                study.record("drift by m", arm, seed, "‖K_T − K_0‖ / ‖K_0‖", run.drift, m)
                study.record("movement by m", arm, seed, "largest row's, relative", run.movement, m)
    return ratios


def _claim_rates(study: Study, seeds: Sequence[int], scale: Scale, middle: int, ratios: dict[str, list[float]]) -> None:
    n = scale.points
    for short, arm in (("13a", V_FIXED), ("13b", U_FIXED)):
        initial, final = interval(ratios[f"{arm} K_0"]), interval(ratios[f"{arm} K_T"])
        near = initial.low > 0.7 and initial.high < 1.3
        far = initial.high < 0.7 or initial.low > 1.3
        study.claims.append(
            Claim(
                claim=f"{short} linear rate, {arm}",
                statement="gradient descent converges linearly at the rate of the initial kernel (here within 30 %)",
                where="abstract; Du et al. theorem 4.1",
                paper_value="1",
                measured=f"measured / predicted {initial} from the initial kernel, {final} from the final one",
                verdict="supported" if near else "refuted" if far else "inconclusive",
                estimate=initial.estimate,
                low=initial.low,
                high=initial.high,
                unit="of the predicted rate",
                seeds=len(seeds),
                note=f"{RESTATED}; k = {middle}, m = {scale.width}, n = d = {n}, random labels",
            )
        )


def _claim_drift(study: Study, seeds: Sequence[int], scale: Scale, middle: int) -> None:
    for short, arm in (("13c", V_FIXED), ("13d", U_FIXED)):
        by_m, by_k = decay(study, "drift by m", arm), decay(study, "drift by k", arm)
        study.claims.append(
            Claim.from_interval(
                by_m,
                above=0.25,
                claim=f"{short} lazy by width, {arm}",
                statement="the kernel moves less as the width m grows, like m^−1/2: wide networks are lazy",
                where="abstract: 'large width'; Du et al.",
                paper_value="exponent 0.5",
                measured=f"exponent {by_m} in m at k = {middle}; {by_k} in k at m = {scale.width}",
                unit="exponent in m",
                seeds=len(seeds),
                note=RESTATED
                + ("" if arm == V_FIXED else "; the drift depends on k here: U mixes m gates into k numbers"),
            )
        )


def _draw(study: Study, scale: Scale, middle: int) -> None:
    study.figures.append(
        lines_figure(
            "drift",
            "How far training moves the tangent kernel",
            f"Left: at inner width {middle}; right: at width {scale.width}.",
            {
                "by width m": study.frame("drift by m"),
                "by inner width k": study.frame("drift by k").query("arm != 'dense'"),
            },
            "width",
            "‖K_T − K_0‖ / ‖K_0‖",
            arms=ARMS,
            log="xy",
        )
    )
    study.figures.append(
        lines_figure(
            "loss-curves",
            f"Gradient descent at inner width {middle}",
            "Random labels; step 1 / λ_max of each network's initial kernel.",
            {"": study.frame("loss curve")},
            "step",
            "‖f − y‖² / ‖y‖²",
            arms=ARMS,
            log="y",
        )
    )
