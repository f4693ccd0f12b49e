"""Online ranking with bandit feedback: only the loss of the drawn ranking is observed.

Positions count from 1 here, as in the paper (Ailon, Hatano and Takimoto 2014, arXiv 1312.1530), and the loss is
``position · s`` with ``|position · s| <= 1`` for every ranking. Both policies use the unbiased
estimate ``loss * E[pi pi^T]^-1 pi`` of s; they differ in the distribution of rankings. BanditRank's has moments in
closed form, O(n^3). CombBand's (Cesa-Bianchi and Lugosi 2012) is exponential in a ranking's estimated loss, and its
normalizer is a permanent.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import ClassVar

import numpy as np

from tangram.selection.protocol import Names, Stateful
from tangram_studies.bandits import plackett_luce


def uniform_second_moment(items: int) -> np.ndarray:
    """Return ``E[pi pi^T]`` of uniform rankings: ``(n+1)(2n+1)/6`` on the diagonal, ``(n+1)(3n+2)/12`` elsewhere."""
    n = items
    moment = np.full((n, n), (n + 1) * (3 * n + 2) / 12)
    np.fill_diagonal(moment, (n + 1) * (2 * n + 1) / 6)
    return moment


def random_positions(replications: int, items: int, rng: np.random.Generator) -> np.ndarray:
    """Return uniform positions from 1, ``(replications, items)``."""
    return rng.permuted(np.tile(np.arange(1, items + 1), (replications, 1)), axis=1)


class BanditPolicy(Stateful):
    """Base class: unbiased estimates from the second moment of the drawn rankings.

    An action is positions from 1, ``(replications, items)``; feedback is the loss, ``(replications,)``.

    Args:
        replications: independent copies.
        items: number of items.
        eta: learning rate.
        gamma: probability of a uniform ranking.
    """

    STATE: ClassVar[Names] = ("losses",)

    def __init__(self, replications: int, items: int, eta: float, gamma: float):
        self.replications, self.items, self.eta, self.gamma = replications, items, eta, gamma
        self.losses = np.zeros((replications, items))

    def select(self, rng: np.random.Generator) -> np.ndarray:
        """Return drawn positions from 1."""
        raise NotImplementedError

    def second_moment(self) -> np.ndarray:
        """Return ``E[pi pi^T]`` of what `select` draws, ``(replications, items, items)``."""
        raise NotImplementedError

    def estimate(self, action: np.ndarray, feedback: np.ndarray) -> np.ndarray:
        """Return the unbiased estimate of the hidden vector, ``(replications, items)``."""
        solved = np.linalg.solve(self.second_moment(), action[:, :, None].astype(float))[:, :, 0]
        return feedback[:, None] * solved

    def update(self, action: np.ndarray, feedback: np.ndarray) -> None:
        """Add the round's estimate."""
        self.losses += self.estimate(action, feedback)

    def recommend(self) -> np.ndarray:
        """Return the positions from 1 with the least estimated loss."""
        return plackett_luce.positions_of((-self.losses).argsort(-1, kind="stable")) + 1


class BanditRank(BanditPolicy):
    """BanditRank: Plackett-Luce rankings by estimated loss, mixed with uniform ones; see `bandit_rank_rates`."""

    def select(self, rng: np.random.Generator) -> np.ndarray:
        """Return drawn positions; items of larger estimated loss tend to come earlier."""
        drawn = plackett_luce.sample_positions(self.eta * self.losses, rng) + 1
        explore = rng.random(self.replications) < self.gamma
        if explore.any():
            drawn[explore] = random_positions(int(explore.sum()), self.items, rng)
        return drawn

    def second_moment(self) -> np.ndarray:
        """Return ``E[pi pi^T]`` of what `select` draws, ``(replications, items, items)``, in O(n^3)."""
        logits = self.eta * self.losses
        mean = plackett_luce.mean_positions(logits) + 1
        moment = plackett_luce.position_covariance(logits) + mean[:, :, None] * mean[:, None, :]
        return (1 - self.gamma) * moment + self.gamma * uniform_second_moment(self.items)


@functools.cache
def all_rankings(items: int) -> np.ndarray:
    """Return all permutations of ``1 … n``, ``(n!, items)``."""
    return np.array(list(itertools.permutations(range(1, items + 1))))


class CombBand(BanditPolicy):
    """CombBand, exactly, by enumeration: rankings with probability proportional to ``exp(-eta * estimated loss)``.

    See `comb_band_rates`.

    Raises:
        ValueError: there are more than 7 items, whose rankings are too many to enumerate.
    """

    def __init__(self, replications: int, items: int, eta: float, gamma: float):
        if items > 7:
            raise ValueError(
                f"{items} items have {math.factorial(items)} rankings; exact CombBand allows at most 7 items"
            )
        super().__init__(replications, items, eta, gamma)
        self._rankings = all_rankings(items)

    def probabilities(self) -> np.ndarray:
        """Return the probabilities of `all_rankings`, ``(replications, n!)``; their normalizer is a `permanent`."""
        logits = -self.eta * self.losses @ self._rankings.T
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        return (1 - self.gamma) * weights + self.gamma / len(self._rankings)

    def select(self, rng: np.random.Generator) -> np.ndarray:
        """Return drawn positions from 1."""
        below = self.probabilities().cumsum(1)
        drawn = (rng.random(self.replications)[:, None] * below[:, -1:] >= below).sum(1)
        return self._rankings[drawn]

    def second_moment(self) -> np.ndarray:
        """Return ``E[pi pi^T]`` of what `select` draws, ``(replications, items, items)``."""
        law = self.probabilities()
        return np.einsum("rp,pi,pj->rij", law, self._rankings, self._rankings, optimize=True)


def permanent(matrix: np.ndarray) -> float:
    """Return the permanent of a square matrix by Ryser's formula, O(2^n n)."""
    n = len(matrix)
    if not n:
        return 1.0
    subsets = (np.arange(2**n)[:, None] >> np.arange(n)) & 1  # (2^n, columns)
    signs = (-1.0) ** (n - subsets.sum(1))
    return float((signs * (subsets @ matrix.T).prod(1)).sum())


def sample_by_permanents(losses: np.ndarray, eta: float, rng: np.random.Generator) -> np.ndarray:
    """Return positions from 1 ``(items,)`` with the distribution of `CombBand` without exploration, item by item.

    The distribution of an item's position depends on permanents of the remaining matrix.
    """
    n = len(losses)
    weights = np.exp(-eta * np.outer(losses - losses.min(), np.arange(1, n + 1)))
    left, positions = list(range(n)), np.zeros(n, dtype=np.int64)
    for item in range(n):
        remaining = weights[item + 1 :]
        mass = np.array([weights[item, j] * permanent(remaining[:, [c for c in left if c != j]]) for j in left])
        chosen = left[int(rng.choice(len(left), p=np.maximum(mass, 0) / np.maximum(mass, 0).sum()))]
        positions[item] = chosen + 1
        left.remove(chosen)
    return positions


# --- rates and bounds, with constants that we derived -----------------------------------------------------------------


def bandit_rank_rates(items: int, rounds: int) -> tuple[float, float]:
    """Return eta and gamma of BanditRank that minimize `bandit_rank_bound`; we could not read the paper's."""
    eta = math.sqrt(items * math.log(2) / (2 * (math.e - 2) * rounds))
    return eta, min(1.0, eta * math.sqrt(24 / (items + 1)))


def bandit_rank_bound(items: int, rounds: int) -> float:
    """Return the upper bound of BanditRank's regret, losses in [0, 1]: exploration, Hedge per pair, variance."""
    eta, gamma = bandit_rank_rates(items, rounds)
    pairs = items * (items - 1) * math.log(2) / (2 * eta)
    return gamma * rounds + pairs + (math.e - 2) * eta * items * rounds


def comb_band_rates(items: int, rounds: int) -> tuple[float, float]:
    """Return eta and gamma of CombBand that minimize `comb_band_bound`."""
    eta = math.sqrt(math.lgamma(items + 1) / ((math.e - 1) * items * rounds))
    return eta, min(1.0, eta * items)


def comb_band_bound(items: int, rounds: int) -> float:
    """Return the upper bound of CombBand's regret in this representation: ``2 sqrt((e - 1) n T ln n!)``."""
    return 2 * math.sqrt((math.e - 1) * items * rounds * math.lgamma(items + 1))
