"""Online ranking with full feedback: after each drawn ranking, the scores of all items are observed.

The loss of a round is ``sum_v score(v) * position(v)``, positions from 0; regret is against the best fixed ranking,
which orders the items by their summed scores. The bounds use the pair decomposition (Ailon 2014, arXiv 1308.6797): a
position is the number of items before it, so the loss is a sum over unordered pairs of the second item's score.

An action is positions ``(replications, items)``, feedback is scores of the same shape. Each policy also returns its
expected positions, for expected losses without sampling noise.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from scipy.special import logsumexp

from tangram.selection.protocol import Names, Stateful
from tangram_studies.bandits import plackett_luce


class RankingPolicy(Stateful):
    """Base class: summed scores.

    Args:
        replications: independent copies.
        items: number of items.
    """

    STATE: ClassVar[Names] = ("scores",)

    def __init__(self, replications: int, items: int):
        self.replications, self.items = replications, items
        self.scores = np.zeros((replications, items))

    def expected_positions(self) -> np.ndarray:
        """Return the mean of the positions that `select` draws, ``(replications, items)``."""
        raise NotImplementedError

    def select(self, rng: np.random.Generator) -> np.ndarray:
        """Return positions, ``(replications, items)``."""
        raise NotImplementedError

    def update(self, action: np.ndarray, feedback: np.ndarray) -> None:
        """Add the round's scores, ``(replications, items)``."""
        self.scores += feedback

    def recommend(self) -> np.ndarray:
        """Return the positions by summed scores: the best fixed ranking so far."""
        return plackett_luce.positions_of((-self.scores).argsort(-1, kind="stable"))


class FollowTheLeader(RankingPolicy):
    """The best fixed ranking so far, ties by index; its regret against an adversary is linear."""

    def expected_positions(self) -> np.ndarray:
        """Return the positions of `select`, which are deterministic."""
        return self.recommend().astype(float)

    def select(self, rng: np.random.Generator) -> np.ndarray:
        """Return the best positions so far."""
        return self.recommend()


class OnlineRank(RankingPolicy):
    """OnlineRank (Ailon 2014, arXiv 1308.6797): pairs ordered with odds ``exp(eta * difference of summed scores)``.

    Args:
        replications: independent copies.
        items: number of items.
        eta: learning rate; see `optimal_eta`.
        sampler: ``'gumbel'``: Plackett-Luce, O(n log n) and vectorized; ``'quicksort'``: the paper's sampler.
    """

    def __init__(self, replications: int, items: int, eta: float, sampler: Literal["gumbel", "quicksort"] = "gumbel"):
        super().__init__(replications, items)
        self.eta, self.sampler = eta, sampler

    def expected_positions(self) -> np.ndarray:
        """Return expected positions, which depend on pair marginals only, and so not on the sampler."""
        return plackett_luce.mean_positions(self.eta * self.scores)

    def select(self, rng: np.random.Generator) -> np.ndarray:
        """Return drawn positions."""
        logits = self.eta * self.scores
        if self.sampler == "gumbel":
            return plackett_luce.sample_positions(logits, rng)
        return np.stack([plackett_luce.quicksort_positions(row, rng) for row in logits])


class ProjectedGradient(RankingPolicy):
    """Lazy projected gradient descent on the permutahedron, rounded to a permutation with that mean: a baseline.

    Args:
        replications: independent copies.
        items: number of items.
        eta: step size; see `gradient_eta`.
    """

    def __init__(self, replications: int, items: int, eta: float):
        super().__init__(replications, items)
        self.eta = eta

    def expected_positions(self) -> np.ndarray:
        """Return the current point of the permutahedron."""
        centered = self.scores - self.scores.mean(1, keepdims=True)
        return np.stack([project_on_permutahedron((self.items - 1) / 2 - self.eta * row) for row in centered])

    def select(self, rng: np.random.Generator) -> np.ndarray:
        """Return positions drawn with that mean."""
        return np.stack([round_to_permutation(point, rng) for point in self.expected_positions()])


class PerturbedLeader(RankingPolicy):
    """Follow the perturbed leader (Kalai and Vempala 2005): scores with fresh uniform noise in ``[0, width]``."""

    def __init__(self, replications: int, items: int, width: float):
        super().__init__(replications, items)
        self.width = width

    def expected_positions(self) -> np.ndarray:
        """Return expected positions; the difference of two uniform numbers has a triangular distribution."""
        gap = np.clip((self.scores[:, :, None] - self.scores[:, None, :]) / self.width, -1, 1)
        before = np.where(gap >= 0, 1 - (1 - gap) ** 2 / 2, (1 + gap) ** 2 / 2)
        before[:, range(self.items), range(self.items)] = 0
        return before.sum(1)

    def select(self, rng: np.random.Generator) -> np.ndarray:
        """Return the positions of the perturbed scores."""
        perturbed = self.scores + self.width * rng.random(self.scores.shape)
        return plackett_luce.positions_of((-perturbed).argsort(-1))


class PermELearn(RankingPolicy):
    """PermELearn (Helmbold and Warmuth 2009): exponential weights on doubly stochastic matrices, by Sinkhorn scaling.

    Args:
        replications: independent copies.
        items: number of items.
        eta: learning rate, for losses in [0, 1] per round.
        scale: divisor of a round's loss.
    """

    STATE: ClassVar[Names] = ("scores", "rows", "columns")

    def __init__(self, replications: int, items: int, eta: float, scale: float):
        super().__init__(replications, items)
        self.eta, self.scale = eta, scale
        self.rows = np.zeros((replications, items))  # log scalings; the next round starts from them
        self.columns = np.zeros((replications, items))

    def matrix(self) -> np.ndarray:
        """Return the doubly stochastic matrices, ``(replications, item, position)``.

        A round multiplies weights by its loss factors and rescales them, so one scaling of the product of all rounds
        equals a scaling in every round.
        """
        log = -self.eta / self.scale * self.scores[:, :, None] * np.arange(self.items)
        for _ in range(2000):
            self.rows = -logsumexp(log + self.columns[:, None, :], axis=2)
            self.columns = -logsumexp(log + self.rows[:, :, None], axis=1)
            balanced = np.exp(log + self.rows[:, :, None] + self.columns[:, None, :])
            if np.abs(balanced.sum(2) - 1).max() < 1e-9:
                break
        return balanced

    def expected_positions(self) -> np.ndarray:
        """Return the expected position of each item."""
        return self.matrix() @ np.arange(self.items)

    def select(self, rng: np.random.Generator) -> np.ndarray:
        """Return positions drawn from a greedy Birkhoff decomposition, O(n^4) at worst."""
        return np.stack([_draw_birkhoff(matrix, rng) for matrix in self.matrix()])


def _draw_birkhoff(matrix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return positions ``(items,)`` with the doubly stochastic ``matrix`` as their mean.

    The greedy decomposition subtracts permutations, weighted by their smallest entry, until the cumulative weight
    exceeds a uniform number.
    """
    from scipy.optimize import linear_sum_assignment

    remainder, items = matrix.copy(), np.arange(len(matrix))
    left = rng.random() * remainder.sum() / len(remainder)
    while True:
        _, positions = linear_sum_assignment(-np.log(np.maximum(remainder, 1e-300)))
        weight = remainder[items, positions].min()
        left -= weight
        if left < 0 or weight <= 1e-12:
            return positions
        remainder[items, positions] -= weight
        remainder[remainder < 1e-15] = 0


# --- the permutahedron ------------------------------------------------------------------------------------------------


def project_on_permutahedron(point: np.ndarray) -> np.ndarray:
    """Return the nearest point of the hull of all permutations of ``0 … n-1``: a sort and an isotonic regression."""
    from scipy.optimize import isotonic_regression

    order = point.argsort()
    projected = np.empty(len(point))
    # With sorted entries z, the nearest point is z - v, v the nearest non-decreasing vector to z - (0 … n-1).
    excess = isotonic_regression(point[order] - np.arange(len(point)), increasing=True).x
    projected[order] = point[order] - excess
    return projected


def round_to_permutation(mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return random positions whose expectation is ``mean``, a point of the permutahedron, in O(n^2).

    By Hardy, Littlewood and Pólya, at most n-1 averagings of two entries lead from (0 … n-1) to the point. Swapping the
    two entries with the averaging's probability preserves every mean.
    """
    n = len(mean)
    order = mean.argsort(kind="stable")
    target = mean[order]
    current = np.arange(n, dtype=float)  # sorted means so far; they majorize the target
    drawn = np.arange(n)
    for _ in range(n):
        low = np.flatnonzero(target - current > 1e-9)
        if not len(low):
            break
        # The last entry that must rise and the first after it that must fall; those between have reached the target.
        i = low[-1]
        falling = np.flatnonzero(current[i:] - target[i:] > 1e-9)
        if not len(falling):
            break
        j = i + falling[0]
        step = min(target[i] - current[i], current[j] - target[j])
        if rng.random() < step / (current[j] - current[i]):
            drawn[i], drawn[j] = drawn[j], drawn[i]
        current[i] += step
        current[j] -= step
    positions = np.empty(n, dtype=np.int64)
    positions[order] = drawn
    return positions


# --- rates and bounds -------------------------------------------------------------------------------------------------


def pair_sum(items: int, chosen: int) -> float:
    """Return ``sum over pairs of (s_u - s_v)^2`` for 0/1 scores with ``chosen`` ones: ``k (n - k)``."""
    return chosen * (items - chosen)


def optimal_eta(items: int, chosen: int, rounds: int) -> float:
    """Return the learning rate of OnlineRank that minimizes `upper_bound`; derived by us."""
    return math.sqrt(4 * items * (items - 1) * math.log(2) / (rounds * pair_sum(items, chosen)))


def upper_bound(items: int, chosen: int, rounds: int) -> float:
    """Return OnlineRank's upper bound, ``sqrt(n (n-1) k (n-k) T ln 2) / 2``: Hedge on every pair; our constants."""
    return 0.5 * math.sqrt(items * (items - 1) * pair_sum(items, chosen) * rounds * math.log(2))


def lower_bound(items: int, chosen: int, rounds: int) -> float:
    """Return any policy's asymptotic regret on iid subsets, ``sqrt(n (n-1) k (n-k) T / pi) / 2``; derived by us."""
    return 0.5 * math.sqrt(items * (items - 1) * pair_sum(items, chosen) * rounds / math.pi)


def gradient_eta(items: int, chosen: int, rounds: int) -> float:
    """Return the step size of `ProjectedGradient` that minimizes `gradient_bound`; derived by us."""
    squared_radius = items * (items**2 - 1) / 12
    return math.sqrt(squared_radius / (rounds * pair_sum(items, chosen) / items))


def gradient_bound(items: int, chosen: int, rounds: int) -> float:
    """Return the upper bound of projected gradient's regret, ``sqrt((n^2 - 1) k (n-k) T / 12)``; derived by us."""
    return math.sqrt((items**2 - 1) * pair_sum(items, chosen) * rounds / 12)


def small_loss_eta(items: int, best_loss: float) -> float:
    """Return the learning rate of OnlineRank for a known loss of the best ranking; derived by us."""
    return items * math.sqrt(math.log(2) / (2 * best_loss))


def small_loss_bound(items: int, best_loss: float) -> float:
    """Return the small-loss upper bound of OnlineRank's regret, O(n sqrt(OPT) + n^2); our constants."""
    eta = small_loss_eta(items, best_loss)
    pairs = items * (items - 1) / 2
    return (eta * best_loss + pairs * math.log(2)) / -math.expm1(-eta) - best_loss
