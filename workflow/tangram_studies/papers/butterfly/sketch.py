"""Learned sketches of several patterns, random sketches, and the closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from tangram.report.style import number
from tangram_studies.blocks.sketching import LearnedSketch, optimal_loss, sketch_loss
from tangram_studies.data.fashion_mnist import Images
from tangram_studies.papers.butterfly.common import Scale, generator, padded_images
from tangram_studies.plots import lines_figure
from tangram_studies.study import Claim, Interval, Study, interval

GRID = ((1, 5), (1, 10), (10, 10), (10, 20), (20, 20))  # (k, l) of table 4
BUTTERFLY, SPARSE, DENSE = "learned butterfly", "learned sparse, N=1", "learned dense"
GAUSSIAN, CLOSED_FORM = "Gaussian", "closed form (SVD of the training set)"


def sketches(study: Study, seeds: Sequence[int], scale: Scale, images: Images) -> None:
    """Section 7, table 4: learned sketches of several patterns, random sketches, and the closed form."""
    _measure(study, seeds, scale, images)
    _claim(study, seeds)
    study.figures.append(
        lines_figure(
            "sketches",
            "Learned sketches",
            "Test error above the best rank-k approximation; the closed form needs no training.",
            {f"k = {k}": study.frame(f"sketch, k={k}") for k in dict.fromkeys(k for k, _ in GRID)},
            "rows of the sketch, l",
            "excess error",
            log="y",
            height=3.2,
        )
    )


def _measure(study: Study, seeds: Sequence[int], scale: Scale, images: Images) -> None:
    for seed in seeds:
        random = np.random.default_rng(seed)
        chosen = random.choice(len(images.train_images), 2 * scale.sketch_matrices, replace=False)
        x = padded_images(images.train_images[chosen], seed).t().reshape(-1, 32, 32)
        x = x / torch.linalg.matrix_norm(x, 2).max()  # the paper: largest singular value 10, here 1
        train, test = x[: scale.sketch_matrices], x[scale.sketch_matrices :]
        # As in the paper, the error of the best rank-k approximation is subtracted.
        for k, rows in GRID:
            best = float(optimal_loss(test, k).mean())
            left = torch.linalg.svd(train.permute(1, 0, 2).flatten(1), full_matrices=False)[0]
            fixed = {
                GAUSSIAN: torch.randn(rows, 32, generator=generator(seed)),
                "random sparse": LearnedSketch(32, rows, "sparse", seed=seed).matrix().detach(),
                CLOSED_FORM: left[:, :rows].t(),
            }
            learned = {
                BUTTERFLY: LearnedSketch(32, rows, "butterfly", seed=seed),
                SPARSE: LearnedSketch(32, rows, "sparse", seed=seed),
                "learned sparse, N=4": LearnedSketch(32, rows, "sparse", min(4, rows), seed=seed),
                DENSE: LearnedSketch(32, rows, "dense", seed=seed),
            }
            for name, sketch in learned.items():
                sketch.fit(train, k, scale.sketch_steps, 0.02, batch=24, seed=seed)
                fixed[name] = sketch.matrix().detach()
            for name, matrix in fixed.items():
                excess = float(sketch_loss(matrix, test, k).mean()) - best
                study.record(f"sketch, k={k}", name, seed, "test error above the best", excess, rows)


def _claim(study: Study, seeds: Sequence[int]) -> None:
    def advantage(other: str) -> tuple[Interval, list[float]]:
        """Return the log error ratio of another sketch to the learned butterfly, and the mean ratio per cell."""
        logs, per_cell = [], []
        for k, rows in GRID:
            errors = study.frame(f"sketch, k={k}")
            table = errors[errors["x"] == rows].pivot(index="seed", columns="arm", values="value").clip(lower=1e-9)
            logs.append(np.log((table[other] / table[BUTTERFLY]).to_numpy()))
            per_cell.append(float(np.exp(logs[-1].mean())))
        return interval(np.mean(logs, axis=0)), per_cell

    for short, other, statement, value, where in (
        ("10a learned sparse", SPARSE, "a learned butterfly errs less than a learned sparse sketch", "4-12 x less", ""),
        ("10b random", GAUSSIAN, "… than a random sketch", "9-800 x less", ""),
        ("10c learned dense", DENSE, "… than a dense learned sketch (N = l)", "less (figure 5)", ""),
        (
            "10d closed form",
            CLOSED_FORM,
            "… than the first left singular vectors of the training set",
            "-",
            "a control that the paper lacks",
        ),
    ):
        log_ratio, cells = advantage(other)
        ratio = Interval(*(math.exp(v) for v in (log_ratio.estimate, log_ratio.low, log_ratio.high)))
        study.claims.append(
            Claim.from_interval(
                ratio,
                above=1.0,
                claim=short,
                statement=statement,
                where=where or "section 7, table 4",
                paper_value=value,
                measured=f"{ratio} x less; by cell of table 4: {', '.join(map(number, cells))}",
                unit="error ratio",
                seeds=len(seeds),
                note="Fashion-MNIST 32 x 32; (k, l) = " + ", ".join(map(str, GRID)),
            )
        )
