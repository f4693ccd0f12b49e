"""The Plackett-Luce distribution of orders: sampling, and its moments in closed form.

Items have log-weights. The order is that of independent exponential variables with the weights as rates, so ``k``
precedes ``i`` with probability ``w_k / (w_k + w_i)``, and disjoint pairs are independent. Positions count from 0.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

LARGEST = 700.0  # exp of larger numbers overflows


def positions_of(order: np.ndarray) -> np.ndarray:
    """Return each item's position, ``(..., items)``, from the items in their order."""
    return order.argsort(-1)


def sample_positions(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return positions drawn for log-weights ``(..., items)``: sorting them with Gumbel noise, O(n log n)."""
    return positions_of((-(logits + rng.gumbel(size=logits.shape))).argsort(-1))


def quicksort_positions(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return positions from a noisy QuickSort, ``(items,)`` (arXiv 1308.6797): other law, same pair marginals.

    Each comparison with the random pivot is drawn with the odds of the two weights. Given that a pivot separates two
    items, or is one of them, their order therefore has the odds of their weights.
    """
    order: list[int] = []
    stack = [np.arange(len(logits))]
    while stack:
        items = stack.pop()
        if len(items) <= 1:
            order.extend(items.tolist())
            continue
        pivot = items[rng.integers(len(items))]
        others = items[items != pivot]
        before = rng.random(len(others)) < expit(logits[others] - logits[pivot])
        stack += [others[~before], np.array([pivot]), others[before]]
    return positions_of(np.array(order))


def pair_marginals(logits: np.ndarray) -> np.ndarray:
    """Return the probability that the row's item precedes the column's, ``(..., items, items)``; 0 on the diagonal."""
    before = expit(logits[..., :, None] - logits[..., None, :])
    before[..., range(logits.shape[-1]), range(logits.shape[-1])] = 0
    return before


def mean_positions(logits: np.ndarray) -> np.ndarray:
    """Return expected positions, ``(..., items)``, in O(n^2)."""
    return pair_marginals(logits).sum(-2)


def position_covariance(logits: np.ndarray) -> np.ndarray:
    """Return the covariance of positions, ``(..., items, items)``, in O(n^3); derived by us.

    With ``q_ki = P(k before i)``, ``c_i = sum_k q_ki`` and ``F_ij = sum_{k not i, j} w_k / (w_k + w_i + w_j)``, the
    expected number of items before both i and j:

        Cov_ij = 2 F_ij - sum_k q_ki q_kj - q_ji c_j - q_ij c_i + q_ij q_ji,    Var_i = c_i + 2 sum_l q_li F_il - c_i^2.
    """
    n = logits.shape[-1]
    diagonal = np.arange(n)
    before = pair_marginals(logits)
    # ratio[k, i] = w_i / w_k, so that w_k / (w_k + w_i + w_j) = 1 / (1 + ratio[k, i] + ratio[k, j]).
    ratio = np.exp(np.clip(logits[..., None, :] - logits[..., :, None], -LARGEST, LARGEST))
    first = 1 / (1 + ratio[..., :, :, None] + ratio[..., :, None, :])  # (..., k, i, j)
    first[..., diagonal, diagonal, :] = 0
    first[..., diagonal, :, diagonal] = 0
    first = first.sum(-3)
    column = before.sum(-2)
    transposed = np.swapaxes(before, -1, -2)
    covariance = (
        2 * first
        - transposed @ before
        - transposed * column[..., None, :]
        - before * column[..., :, None]
        + before * transposed
    )
    covariance[..., diagonal, diagonal] = column + 2 * (transposed * first).sum(-1) - column**2
    return covariance


def log_probability(order: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return the log-probability of an order (items, first to last), for arrays ``(..., items)``."""
    sorted_logits = np.take_along_axis(logits, order, axis=-1)
    later = np.logaddexp.accumulate(sorted_logits[..., ::-1], axis=-1)[..., ::-1]
    return (sorted_logits - later).sum(-1)
