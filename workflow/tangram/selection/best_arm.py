"""Fixed-budget best-arm identification: sequential halving, paired on prompts.

Sequential halving (Karnin, Koren and Somekh 2013) splits the budget evenly over log2(candidates) rounds and drops the
worse half after each. Paired: all remaining candidates see the same prompts, so the difficulty of prompts cancels. A
budget counts cells (scores of a candidate on a prompt, cached).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np

from tangram.selection.protocol import Names, Stateful

Look = tuple[np.ndarray, np.ndarray]  # candidates (replications, k), prompts (m,)


class PairedHalving(Stateful):
    """Sequential halving on scores of the same prompts; an action is the candidates and prompts to evaluate.

    Feedback is ``(replications, k, m)``, lower is better. One round is the uniform allocation.

    Args:
        replications: number of independent replications.
        arms: number of candidates.
        prompts: number of prompts, which are used in order.
        budget: cells, at most ``arms * prompts``.
        judge: criterion: ``'values'`` for mean scores, ``'signs'`` for pairwise wins on single prompts.
        rounds: number of halvings; by default as many as leave one candidate.

    Raises:
        ValueError: the budget does not suffice for one prompt.
    """

    STATE: ClassVar[Names] = ("order", "values", "round", "evaluated", "cells")

    def __init__(
        self,
        replications: int,
        arms: int,
        prompts: int,
        budget: int,
        judge: Literal["values", "signs"] = "values",
        rounds: int | None = None,
    ):
        self.rounds = max(1, math.ceil(math.log2(arms))) if rounds is None else rounds
        if budget < arms:
            raise ValueError(
                f"a budget of {budget} cells does not suffice for one prompt of {arms} candidates; raise it"
            )
        self.replications, self.arms, self.prompts, self.judge = replications, arms, prompts, judge
        self.budget = min(budget, arms * prompts)
        self._rows = np.arange(replications)[:, None]
        self.order = np.tile(np.arange(arms), (replications, 1))  # best first
        self.values = np.full((replications, arms, prompts), np.nan)
        self.round = self.evaluated = self.cells = 0  # `evaluated` counts prompts

    @property
    def active(self) -> np.ndarray:
        """The remaining candidates, ``(replications, k)``, best first."""
        return self.order[:, : math.ceil(self.arms / 2**self.round)].copy()

    @property
    def done(self) -> bool:
        """Whether the last round is over."""
        return self.round == self.rounds

    def select(self, rng: np.random.Generator) -> Look:
        """Return the remaining candidates and their next prompts; no prompts once `done`."""
        if self.done:
            return self.active, np.arange(0)
        share = (self.budget - self.cells) / (self.rounds - self.round)  # includes the unused rest of earlier rounds
        count = min(max(int(share // self.active.shape[1]), 1), self.prompts - self.evaluated)
        return self.active, np.arange(self.evaluated, self.evaluated + count)

    def update(self, action: Look, feedback: np.ndarray) -> None:
        """Store the scores and drop the worse half."""
        arms, prompts = action
        if self.done:
            return
        self.values[self._rows[:, :, None], arms[:, :, None], prompts[None, None, :]] = feedback
        self.evaluated += len(prompts)
        self.cells += arms.shape[1] * len(prompts)
        better = self._scores(arms).argsort(1, kind="stable")
        self.order[:, : arms.shape[1]] = np.take_along_axis(arms, better, axis=1)
        self.round += 1

    def _scores(self, arms: np.ndarray) -> np.ndarray:
        """Return the criterion that orders candidates, ``(replications, k)``; lower is better."""
        values = self.values[self._rows[:, :, None], arms[:, :, None], np.arange(self.evaluated)]
        if self.judge == "values":
            return values.mean(2)
        losses = np.zeros(values.shape[:2])
        for arm in range(values.shape[1]):  # against all others: (replications, k, prompts)
            difference = values[:, arm : arm + 1] - values
            losses[:, arm] = np.sign(difference).sum((1, 2))
        return losses

    def recommend(self) -> np.ndarray:
        """Return the best candidate so far, ``(replications,)``."""
        return self.order[:, 0].copy()
