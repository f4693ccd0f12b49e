"""How well predicted scores, such as sums of replace-1-block scores, tell the true scores of assembled children."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fidelity:
    """Agreement of predicted and true scores of the same children; lower scores are better.

    Attributes:
        children: number of children.
        tau: Kendall's rank correlation tau-b.
        tau_low: lower end of its 95 % bootstrap interval over children.
        tau_high: upper end.
        rho: Spearman's rank correlation.
        regret: by k, how much worse the best of the k children with the best predictions truly is than the best of all,
            in the unit of the scores.
        ratio: median of predicted over true.
        ratio_low: its lower quartile.
        ratio_high: its upper quartile.
    """

    children: int
    tau: float
    tau_low: float
    tau_high: float
    rho: float
    regret: dict[int, float]
    ratio: float
    ratio_low: float
    ratio_high: float


def fidelity(
    predicted: np.ndarray, true: np.ndarray, ks: tuple[int, ...] = (1, 5, 10), draws: int = 1000, seed: int = 0
) -> Fidelity:
    """Compare predicted and true scores, ``(children,)`` each.

    Args:
        predicted: predicted scores.
        true: true scores, above 0.
        ks: sizes of the shortlists for the regret; those above the number of children are left out.
        draws: bootstrap samples of the children.
        seed: seed of the bootstrap.
    """
    tau, rho = kendall_tau(predicted, true), spearman_rho(predicted, true)
    rng = np.random.default_rng(seed)
    samples = rng.integers(len(true), size=(draws, len(true)))
    low, high = np.nanquantile([kendall_tau(predicted[rows], true[rows]) for rows in samples], [0.025, 0.975])
    quartiles = np.quantile(value_ratio(predicted, true), [0.25, 0.5, 0.75])
    regret = {k: top_k_regret(predicted, true, k) for k in ks if k <= len(true)}
    return Fidelity(len(true), tau, float(low), float(high), rho, regret, *map(float, quartiles[[1, 0, 2]]))


def kendall_tau(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return Kendall's tau-b: concordant less discordant pairs, corrected for ties; NaN if one side is constant."""
    from scipy.stats import kendalltau

    return float(kendalltau(predicted, true).statistic)


def spearman_rho(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return Spearman's rho, the correlation of ranks; NaN if one side is constant."""
    from scipy.stats import spearmanr

    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return float("nan")
    return float(spearmanr(predicted, true).statistic)


def top_k_regret(predicted: np.ndarray, true: np.ndarray, k: int) -> float:
    """Return the smallest true score of the k best-predicted children less that of all children; 0 at best."""
    shortlist = np.argsort(predicted, kind="stable")[:k]
    return float(true[shortlist].min() - true.min())


def value_ratio(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return predicted over true of every child, ``(children,)``: 1 if the predictions are values, not only ranks."""
    return predicted / true
