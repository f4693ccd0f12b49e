"""Tangent kernels: the distance of the factorized ones to the dense one, and their least eigenvalues."""

# ruff: noqa: RUF001 - the typographic signs are meant

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tangram_studies.data.fashion_mnist import Images
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
    image_points,
    least_eigenvalue,
    limit_kernel,
    unit_points,
)
from tangram_studies.plots import lines_figure
from tangram_studies.study import Claim, Study, interval


def closeness(study: Study, seeds: Sequence[int], scale: Scale, images: Images) -> None:
    """Measure the factorized tangent kernel's distance to the dense one and its least eigenvalue, over k."""
    _measure(study, seeds, scale, images)
    _claim(study, seeds, scale)
    _draw(study, scale)


def _points(images: Images, n: int, seed: int) -> dict[str, torch.Tensor]:
    """Return points on the sphere by the name of their source, ``(n, d)`` each."""
    from sklearn.datasets import load_digits

    digits = load_digits().data.astype(np.float32)
    sample = digits[np.random.default_rng(seed).choice(len(digits), n, replace=False)] - digits.mean(0)
    return {
        "d = n": unit_points(n, n, seed),
        "d = n / 5": unit_points(n, n // 5, seed),
        "digits": torch.from_numpy(sample / np.linalg.norm(sample, axis=1, keepdims=True)),
        "Fashion-MNIST": image_points(images, n, seed, "train")[0],
    }


def _measure(study: Study, seeds: Sequence[int], scale: Scale, images: Images) -> None:
    for seed in seeds:
        for name, x in _points(images, scale.points, seed).items():
            limit = limit_kernel(x)
            dense = TwoLayer(x.shape[1], scale.width, None, "", seed).kernel(x)
            for arm in (V_FIXED, U_FIXED):
                for k in scale.ranks:
                    kernel = TwoLayer(x.shape[1], scale.width, k, arm, seed).kernel(x)
                    share = least_eigenvalue(kernel) / least_eigenvalue(limit)
                    study.record(f"least eigenvalue, {name}", arm, seed, "of the infinite width's", share, k)
                    study.record(f"kernel distance, {name}", arm, seed, "relative", distance(kernel, dense), k)
            share = least_eigenvalue(dense) / least_eigenvalue(limit)
            for k in scale.ranks:
                study.record(f"least eigenvalue, {name}", DENSE, seed, "of the infinite width's", share, k)


def _claim(study: Study, seeds: Sequence[int], scale: Scale) -> None:
    n = scale.points
    for short, arm, k in (("12a", U_FIXED, scale.ranks[-2]), ("12b", V_FIXED, scale.ranks[-2])):
        rows = study.frame("least eigenvalue, d = n")
        share = interval(rows[(rows["arm"] == arm) & (rows["x"] == k)]["value"].to_numpy())
        study.claims.append(
            Claim.from_interval(
                share,
                above=0.5,
                claim=f"{short} least eigenvalue, {arm}",
                statement="a factorized layer of inner width k ≪ d keeps the kernel's least eigenvalue (here ≥ λ₀/2)",
                where="abstract: 'similar guarantees'",
                unit=f"of λ₀ at k = {k}, d = n = {n}",
                seeds=len(seeds),
                note=RESTATED,
            )
        )
    slopes = {arm: decay(study, "kernel distance, d = n", arm) for arm in (V_FIXED, U_FIXED)}
    study.claims.append(
        Claim.from_interval(
            slopes[V_FIXED],
            above=0.25,
            claim="12c kernel distance",
            statement="the kernel comes near to the dense one as k grows, like k^−1/2 (Johnson-Lindenstrauss)",
            where="abstract",
            paper_value="exponent 0.5",
            measured=f"exponent {slopes[V_FIXED]} with V fixed, {slopes[U_FIXED]} with U fixed",
            unit="exponent",
            seeds=len(seeds),
            note=f"{RESTATED}; with U fixed the finite width m = {scale.width} bounds the distance from below",
        )
    )


def _draw(study: Study, scale: Scale) -> None:
    names = ("d = n", "digits", "Fashion-MNIST")
    study.figures.append(
        lines_figure(
            "least-eigenvalue",
            "Least eigenvalue of the tangent kernel",
            f"Relative to infinite width; m = {scale.width}, n = {scale.points} points. With U fixed, few trained "
            "weights suffice.",
            {name: study.frame(f"least eigenvalue, {name}") for name in names},
            "inner width k",
            "λ_min / λ₀",
            arms=ARMS,
            log="x",
        )
    )
    study.figures.append(
        lines_figure(
            "kernel-distance",
            "Distance to the dense tangent kernel",
            "Frobenius norm, relative.",
            {name: study.frame(f"kernel distance, {name}") for name in names},
            "inner width k",
            "‖K − K_dense‖ / ‖K_dense‖",
            arms=ARMS,
            log="xy",
        )
    )
