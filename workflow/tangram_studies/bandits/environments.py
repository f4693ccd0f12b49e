"""Environments: preference matrices, utilities with a link function, a table of scores, sequences of choices.

Dueling (Ailon, Karnin and Joachims 2014, arXiv 1405.3396): every round two arms are played, with hidden utilities
``u`` and ``v``; the left one wins with probability ``link(u, v)``. Regret per round is the best arm's utility minus the
mean of the two played. For a preference matrix without utilities, an arm's gap is ``P(best beats it) - 1/2``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

LINKS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "linear": lambda left, right: (1 + left - right) / 2,
    "natural": lambda left, right: left / (left + right),
    "logit": lambda left, right: 1 / (1 + np.exp(right - left)),
}
UTILITIES = {  # the five arm sets of arXiv 1405.3396, section 6
    "1good": (0.8, 0.2, 0.2, 0.2, 0.2, 0.2),
    "2good": (0.8, 0.7, 0.2, 0.2, 0.2, 0.2),
    "3good": (0.8, 0.7, 0.7, 0.2, 0.2, 0.2),
    "arith": (0.8, 0.7, 0.575, 0.45, 0.325, 0.2),
    "geom": (0.8, 0.7, 0.512, 0.374, 0.274, 0.2),
}
# P(row beats column) of six retrieval functions of arXiv.org (Yue and Joachims 2011), from duelingbanditlib.
ARXIV = np.array(
    [
        [0.50, 0.55, 0.55, 0.54, 0.61, 0.61],
        [0.45, 0.50, 0.55, 0.55, 0.58, 0.60],
        [0.45, 0.45, 0.50, 0.54, 0.51, 0.56],
        [0.46, 0.45, 0.46, 0.50, 0.54, 0.50],
        [0.39, 0.42, 0.49, 0.46, 0.50, 0.51],
        [0.39, 0.40, 0.44, 0.50, 0.49, 0.50],
    ]
)


def preferences_of(utilities: tuple[float, ...] | np.ndarray, link: str) -> np.ndarray:
    """Return the probability that the row's arm beats the column's, ``(arms, arms)``."""
    values = np.asarray(utilities, dtype=float)
    return LINKS[link](values[:, None], values[None, :])


class Duels:
    """Duels with fixed win probabilities; labels of arms are shuffled in every replication.

    Without shuffling, a policy that breaks ties by index would have an advantage if arm 0 is the best.

    Args:
        preferences: ``(arms, arms)`` or ``(replications, arms, arms)``; entry ``[x, y]`` is P(x beats y).
        gaps: regret of playing an arm on both sides, ``(arms,)`` or ``(replications, arms)``; 0 for the best.
        replications: independent copies.
        rng: generator that shuffles the labels.

    Raises:
        ValueError: the matrix is not one of complementary probabilities.
    """

    def __init__(self, preferences: np.ndarray, gaps: np.ndarray, replications: int, rng: np.random.Generator):
        if not np.allclose(preferences + np.swapaxes(preferences, -1, -2), 1) or np.any(preferences < 0):
            raise ValueError("preferences must be probabilities, and an arm's and its opponent's must add to 1")
        arms = preferences.shape[-1]
        self.replications, self.arms = replications, arms
        labels = rng.permuted(np.tile(np.arange(arms), (replications, 1)), axis=1)
        rows = np.arange(replications)[:, None]
        full = np.broadcast_to(preferences, (replications, arms, arms))
        self.preferences = full[rows[:, :, None], labels[:, :, None], labels[:, None, :]].copy()
        self.gaps = np.broadcast_to(gaps, (replications, arms))[rows, labels].copy()
        self._rows = rows[:, 0]

    @classmethod
    def of_utilities(
        cls, utilities: tuple[float, ...] | np.ndarray, link: str, replications: int, rng: np.random.Generator
    ) -> Duels:
        """Return duels of arms with these utilities and a link of `LINKS`."""
        values = np.asarray(utilities, dtype=float)
        return cls(preferences_of(values, link), values.max() - values, replications, rng)

    @classmethod
    def of_matrix(cls, preferences: np.ndarray, replications: int, rng: np.random.Generator) -> Duels:
        """Return duels with a preference matrix in which one arm beats all others.

        Raises:
            ValueError: no arm beats all others.
        """
        beats_all = np.flatnonzero((preferences + np.eye(len(preferences)) > 0.5).all(1))
        if len(beats_all) != 1:
            raise ValueError("no arm beats all others")
        return cls(preferences, preferences[beats_all[0]] - 0.5, replications, rng)

    def play(self, left: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return whether the right arm won, ``(replications,)`` bool."""
        return rng.random(self.replications) >= self.preferences[self._rows, left, right]

    def regret(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return this round's regret, ``(replications,)``."""
        return (self.gaps[self._rows, left] + self.gaps[self._rows, right]) / 2


class Ledger:
    """The costs of a choice in two separate units.

    Attributes:
        cells: distinct (candidate, prompt) pairs that were scored, ``(replications,)``. Scores are cached, so that
            repeated reads are free.
        duels: votes of a judge, ``(replications,)``.
    """

    def __init__(self, replications: int, arms: int, prompts: int):
        self._is_charged = np.zeros((replications, arms, prompts), dtype=bool)
        self._rows = np.arange(replications)
        self.cells = np.zeros(replications, dtype=np.int64)
        self.duels = np.zeros(replications, dtype=np.int64)

    def look(self, arms: np.ndarray, prompts: np.ndarray) -> None:
        """Count one cell per replication, if it is new."""
        self.cells += ~self._is_charged[self._rows, arms, prompts]
        self._is_charged[self._rows, arms, prompts] = True

    def look_all(self, arms: np.ndarray, prompts: np.ndarray) -> None:
        """Count the new pairs of ``arms`` ``(replications, k)`` and ``prompts`` ``(replications, m)``."""
        index = (self._rows[:, None, None], arms[:, :, None], prompts[:, None, :])
        self.cells += (~self._is_charged[index]).sum((1, 2))
        self._is_charged[index] = True


class ScoreTable:
    """Replay of a full table of scores of candidates on prompts, with a random order of prompts per replication.

    Arms are candidates with shuffled labels in every replication, as in `Duels`; `candidates` maps them back.

    Args:
        values: scores, lower is better, ``(candidates, prompts)``.
        replications: number of orders of prompts.
        rng: generator of orders and labels.
        flip: probability that a judge errs.
    """

    def __init__(self, values: np.ndarray, replications: int, rng: np.random.Generator, flip: float = 0.0):
        self.arms, self.prompts = values.shape
        self.replications, self.flip = replications, flip
        orders = rng.permuted(np.tile(np.arange(self.prompts), (replications, 1)), axis=1)
        self._labels = rng.permuted(np.tile(np.arange(self.arms), (replications, 1)), axis=1)
        self._values = values[self._labels[:, :, None], orders[:, None, :]]  # (replications, arms, prompts)
        self._duels = np.zeros((replications, self.arms, self.arms), dtype=np.int64)
        self._rows = np.arange(replications)
        self.ledger = Ledger(replications, self.arms, self.prompts)

    def candidates(self, arms: np.ndarray) -> np.ndarray:
        """Return the candidates of arms, both ``(..., replications)``."""
        return self._labels[self._rows, arms]

    def look(self, arms: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """Return values ``(replications, k, m)`` of ``arms`` ``(replications, k)`` on ``prompts`` ``(m,)``."""
        chosen = np.broadcast_to(prompts, (self.replications, len(prompts)))
        self.ledger.look_all(arms, chosen)
        return self._values[self._rows[:, None, None], arms[:, :, None], chosen[:, None, :]]

    def play(self, left: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return whether the right candidate won on the pair's next prompt; ties are broken at random.

        The k-th duel of every pair is on the k-th prompt, so that pairs share cells.
        """
        low, high = np.minimum(left, right), np.maximum(left, right)
        prompt = self._duels[self._rows, low, high] % self.prompts
        self._duels[self._rows, low, high] += 1
        for arm in (left, right):
            self.ledger.look(arm, prompt)
        self.ledger.duels += 1
        difference = self._values[self._rows, left, prompt] - self._values[self._rows, right, prompt]
        won = np.where(difference == 0, rng.random(self.replications) < 0.5, difference > 0)
        return won ^ (rng.random(self.replications) < self.flip) if self.flip else won


# --- sequences of choices, for online ranking ------------------------------------------------------------------------


def choice_sequence(
    kind: str, items: int, chosen: int, rounds: int, replications: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield the chosen items of each round: ``(replications, items)`` of 0 and 1 with ``chosen`` ones.

    Args:
        kind: ``'iid'``: uniform subsets, on which all policies have equal expected loss; ``'zipf'``: popularity
            1/rank; ``'drift'``: popularity 1/rank, rotated among the items every 1/8 of the rounds;
            ``'round-robin'``: items in turn, the adversary of follow-the-leader.
        items: number of items.
        chosen: items chosen per round.
        rounds: number of rounds.
        replications: independent sequences (equal ones for ``'round-robin'``).
        rng: generator of the sequences.

    Raises:
        ValueError: ``kind`` is unknown.
    """
    if kind not in ("iid", "zipf", "drift", "round-robin"):
        raise ValueError(f"no sequence is called '{kind}'")
    rows = np.arange(replications)[:, None]
    popularity = np.log(1 / np.arange(1, items + 1))
    for round_ in range(rounds):
        scores = np.zeros((replications, items))
        if kind == "round-robin":
            scores[:, -(round_ * chosen + np.arange(chosen)) % items - 1] = 1
        else:
            keys = rng.gumbel(
                size=(replications, items)
            )  # the items with the largest keys are drawn without replacement
            if kind != "iid":
                keys += np.roll(popularity, (8 * round_ // rounds) * (items // 3) if kind == "drift" else 0)
            scores[rows, np.argpartition(-keys, chosen - 1, axis=1)[:, :chosen]] = 1
        yield scores
