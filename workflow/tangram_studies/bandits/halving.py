"""Sequential halving on votes of a judge, round-robin: every remaining pair has equally many duels."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tangram.selection.best_arm import Look
from tangram.selection.protocol import Names, Stateful


class RoundRobinHalving(Stateful):
    """Sequential halving on votes; an action is the duels of a round, equally many of each remaining pair.

    Actions are ``(left, right)``, each ``(replications, duels)``; feedback is True where ``right`` wins.

    Args:
        replications: number of independent replications.
        arms: number of candidates.
        budget: number of duels.
        rounds: number of halvings; one round is the uniform allocation.

    Raises:
        ValueError: the budget does not suffice for one duel of each pair.
    """

    STATE: ClassVar[Names] = ("order", "wins", "duels", "round")

    def __init__(self, replications: int, arms: int, budget: int, rounds: int | None = None):
        self.rounds = max(1, math.ceil(math.log2(arms))) if rounds is None else rounds
        if budget < arms * (arms - 1) // 2:
            raise ValueError(
                f"a budget of {budget} duels does not suffice for each pair of {arms} candidates; raise it"
            )
        self.replications, self.arms, self.budget = replications, arms, budget
        self._rows = np.arange(replications)[:, None]
        self.order = np.tile(np.arange(arms), (replications, 1))  # best first
        self.wins = np.zeros((replications, arms, arms))
        self.duels = self.round = 0

    @property
    def active(self) -> np.ndarray:
        """The remaining candidates, ``(replications, k)``, best first."""
        return self.order[:, : math.ceil(self.arms / 2**self.round)].copy()

    @property
    def done(self) -> bool:
        """Whether the last round is over."""
        return self.round == self.rounds

    def select(self, rng: np.random.Generator) -> Look:
        """Return the duels of the next round; none once `done`."""
        left, right = np.triu_indices(self.active.shape[1], 1)
        share = (self.budget - self.duels) / max(1, self.rounds - self.round)
        repeats = 0 if self.done else max(1, int(share // max(1, len(left))))
        return np.tile(self.active[:, left], repeats), np.tile(self.active[:, right], repeats)

    def update(self, action: Look, feedback: np.ndarray) -> None:
        """Count the votes and drop the worse half."""
        if self.done:
            return
        left, right = action
        winner, loser = np.where(feedback, right, left), np.where(feedback, left, right)
        np.add.at(self.wins, (self._rows, winner, loser), 1)
        self.duels += left.shape[1]
        arms = self.active
        among = self.wins[self._rows[:, :, None], arms[:, :, None], arms[:, None, :]]
        better = (-among.sum(2)).argsort(1, kind="stable")
        self.order[:, : arms.shape[1]] = np.take_along_axis(arms, better, axis=1)
        self.round += 1

    def recommend(self) -> np.ndarray:
        """Return the best candidate so far, ``(replications,)``."""
        return self.order[:, 0].copy()
