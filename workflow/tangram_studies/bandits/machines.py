"""Singleton bandit machines: policies for plain bandits, which the dueling reductions use as black boxes.

`advance` returns an arm, `feedback` takes its reward in [0, 1]. One object contains ``slots`` machines for each
replication (MultiSBM needs one per arm). A machine counts only its own rounds, so that it is a black box.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tangram.selection.protocol import Names, Stateful


class Machine(Stateful):
    """Base class: counts of plays and sums of rewards by slot and arm.

    Args:
        replications: independent copies.
        arms: number of arms.
        slots: machines per replication.
    """

    STATE: ClassVar[Names] = ("counts", "sums")

    def __init__(self, replications: int, arms: int, slots: int = 1):
        self.replications, self.arms, self.slots = replications, arms, slots
        self._rows = np.arange(replications)
        self.reset()

    def reset(self) -> None:
        """Reset all counts and sums."""
        self.counts = np.zeros((self.replications, self.slots, self.arms))
        self.sums = np.zeros((self.replications, self.slots, self.arms))

    def advance(self, rng: np.random.Generator, slot: np.ndarray | int = 0) -> np.ndarray:
        """Return the next arm of the machine in ``slot``, ``(replications,)``."""
        raise NotImplementedError

    def feedback(self, arm: np.ndarray, reward: np.ndarray, slot: np.ndarray | int = 0) -> None:
        """Record the reward of an arm that `advance` returned."""
        self.counts[self._rows, slot, arm] += 1
        self.sums[self._rows, slot, arm] += reward


class UCB(Machine):
    """Upper confidence bounds: ``mean + sqrt((alpha + 2) ln t / (2 n))``; unplayed arms first, in random order.

    It is alpha-robust (arXiv 1405.3396, section 4): a suboptimal arm is played more than ``s >= 4 alpha ln T / gap^2``
    times with probability below ``(2 / alpha) (s / 2)^-alpha``.
    """

    def __init__(self, replications: int, arms: int, slots: int = 1, alpha: float = 3.0):
        self.alpha = alpha
        super().__init__(replications, arms, slots)

    def advance(self, rng: np.random.Generator, slot: np.ndarray | int = 0) -> np.ndarray:
        """Return the arm with the largest upper bound."""
        counts, sums = self.counts[self._rows, slot], self.sums[self._rows, slot]
        played = np.maximum(counts, 1)
        clock = np.maximum(counts.sum(1, keepdims=True), 1)
        bounds = sums / played + np.sqrt((self.alpha + 2) * np.log(clock) / (2 * played))
        fresh = counts == 0
        if fresh.any():
            bounds = np.where(fresh, 1e9 * (1 + rng.random(counts.shape)), bounds)
        return bounds.argmax(1)


class Thompson(Machine):
    """Thompson sampling with a uniform Beta prior; rewards between 0 and 1 count as their expectation."""

    def advance(self, rng: np.random.Generator, slot: np.ndarray | int = 0) -> np.ndarray:
        """Return the arm with the largest draw from its posterior."""
        counts, sums = self.counts[self._rows, slot], self.sums[self._rows, slot]
        return rng.beta(1 + sums, 1 + counts - sums).argmax(1)


class TsallisINF(Machine):
    """Tsallis-INF (Zimmert and Seldin 2021, arXiv 1807.07623): best of both worlds, importance-weighted losses.

    Weights are ``4 / (eta (L - x))^2`` with ``eta = 2 / sqrt(t)``, where x makes them add to 1.
    """

    STATE: ClassVar[Names] = ("counts", "sums", "losses", "roots", "probabilities")

    def reset(self) -> None:
        """Reset the state."""
        super().reset()
        shape = (self.replications, self.slots, self.arms)
        self.losses = np.zeros(shape)
        self.roots = np.full(shape[:2], -np.sqrt(self.arms))  # exact at the first round
        self.probabilities = np.full(shape, 1 / self.arms)

    def advance(self, rng: np.random.Generator, slot: np.ndarray | int = 0) -> np.ndarray:
        """Return an arm drawn from the current weights."""
        losses = self.losses[self._rows, slot]
        eta = 2 / np.sqrt(self.counts[self._rows, slot].sum(1) + 1)
        weights, self.roots[self._rows, slot] = tsallis_weights(losses, eta, self.roots[self._rows, slot])
        self.probabilities[self._rows, slot] = weights
        return draw(weights, rng)

    def feedback(self, arm: np.ndarray, reward: np.ndarray, slot: np.ndarray | int = 0) -> None:
        """Record the reward; the loss estimate is divided by the arm's probability."""
        super().feedback(arm, reward, slot)
        self.losses[self._rows, slot, arm] += (1 - reward) / self.probabilities[self._rows, slot, arm]


def tsallis_weights(losses: np.ndarray, eta: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights ``(replications, arms)`` and the roots ``(replications,)`` that normalize them, by Newton.

    Args:
        losses: cumulative estimated losses, ``(replications, arms)``.
        eta: learning rates, ``(replications,)``.
        start: initial roots, ``(replications,)``.
    """
    least = losses.min(1)
    # At `least - 2 / eta` the smallest loss alone has weight 1, so the root is at most that, and Newton decreases
    # monotonically towards it; at the lower end no arm has a weight above 1 / arms.
    root = np.clip(start, least - 2 * np.sqrt(losses.shape[1]) / eta, least - 2 / eta)
    for _ in range(60):
        distance = losses - root[:, None]
        weights = 4 / (eta[:, None] * distance) ** 2
        excess = weights.sum(1) - 1
        if np.abs(excess).max() < 1e-10:
            break
        slope = (2 * weights / distance).sum(1)
        root = np.minimum(root - excess / slope, least - 2 / eta)
    return weights / weights.sum(1, keepdims=True), root


def draw(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an index drawn from each row of ``(replications, arms)``."""
    below = probabilities.cumsum(1)
    return (rng.random(len(below))[:, None] * below[:, -1:] >= below).sum(1)


MACHINES: dict[str, type[Machine]] = {"ucb": UCB, "thompson": Thompson, "tsallis-inf": TsallisINF}
