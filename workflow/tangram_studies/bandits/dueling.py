"""Dueling bandits: three reductions to plain bandits, two older algorithms, and modern baselines.

An action is a pair ``(left, right)`` of arms, each ``(replications,)``; feedback is whether the right one won. The
reductions are those of Ailon, Karnin and Joachims 2014 (arXiv 1405.3396) and use any machine of `machines.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from tangram.selection.protocol import Names, Stateful
from tangram_studies.bandits.machines import UCB, Machine, TsallisINF, draw

Pair = tuple[np.ndarray, np.ndarray]
MakeMachine = Callable[..., Machine]


def random_argmax(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the index of the largest value in each row of ``(replications, arms)``, ties broken at random."""
    ties = values == values.max(-1, keepdims=True)
    return np.where(ties, rng.random(values.shape), -1.0).argmax(-1)


class DuelingPolicy(Stateful):
    """Base class: counts of each arm's plays, on either side.

    Args:
        replications: independent copies.
        arms: number of arms.
    """

    STATE: ClassVar[Names] = ("plays",)

    def __init__(self, replications: int, arms: int):
        self.replications, self.arms = replications, arms
        self._rows = np.arange(replications)
        self.plays = np.zeros((replications, arms))

    def select(self, rng: np.random.Generator) -> Pair:
        """Return the next pair of every replication."""
        raise NotImplementedError

    def update(self, action: Pair, feedback: np.ndarray) -> None:
        """Record whether the right arm won, bool, ``(replications,)``."""
        for arm in action:
            self.plays[self._rows, arm] += 1

    def recommend(self) -> np.ndarray:
        """Return the arm played most often, ``(replications,)``."""
        return self.plays.argmax(1)


class Uniform(DuelingPolicy):
    """Pairs of different arms at random; recommends the arm with the largest share of wins."""

    STATE: ClassVar[Names] = ("plays", "wins")

    def __init__(self, replications: int, arms: int):
        super().__init__(replications, arms)
        self.wins = np.zeros((replications, arms))

    def select(self, rng: np.random.Generator) -> Pair:
        """Return a random pair."""
        left = rng.integers(self.arms, size=self.replications)
        return left, (left + rng.integers(1, self.arms, size=self.replications)) % self.arms

    def update(self, action: Pair, feedback: np.ndarray) -> None:
        """Count the win."""
        super().update(action, feedback)
        self.wins[self._rows, np.where(feedback, action[1], action[0])] += 1

    def recommend(self) -> np.ndarray:
        """Return the arm with the largest share of wins."""
        return (self.wins / np.maximum(self.plays, 1)).argmax(1)


class Doubler(DuelingPolicy):
    """Doubler: a machine selects the right arm; the left arm is drawn from the right arms of the previous phase.

    Phase i has 2^i rounds and a new machine, whose rewards therefore have fixed means. The left arm is drawn with
    probability proportional to its plays.
    """

    STATE: ClassVar[Names] = ("plays", "machine", "reference", "phase", "left_in_phase", "phase_plays")

    def __init__(self, replications: int, arms: int, machine: MakeMachine = UCB):
        super().__init__(replications, arms)
        self.machine = machine(replications, arms)
        self.reference = np.zeros((replications, arms))
        self.reference[:, 0] = 1  # any arm: environments shuffle labels
        self.phase_plays = np.zeros((replications, arms))
        self.phase, self.left_in_phase = 1, 2

    def select(self, rng: np.random.Generator) -> Pair:
        """Return a left arm of the previous phase, and the machine's arm."""
        if self.left_in_phase == 0:
            self.reference, self.phase_plays = self.phase_plays, np.zeros_like(self.phase_plays)
            self.phase += 1
            self.left_in_phase = 2**self.phase
            self.machine.reset()
        return draw(self.reference, rng), self.machine.advance(rng)

    def update(self, action: Pair, feedback: np.ndarray) -> None:
        """Reward the machine if the right arm won."""
        super().update(action, feedback)
        self.machine.feedback(action[1], feedback)
        self.phase_plays[self._rows, action[1]] += 1
        self.left_in_phase -= 1

    def recommend(self) -> np.ndarray:
        """Return the right arm played most in the last phase."""
        return self.reference.argmax(1)


class MultiSBM(DuelingPolicy):
    """MultiSBM: one machine per left arm; the left arm is the right arm of the previous round."""

    STATE: ClassVar[Names] = ("plays", "machine", "last")

    def __init__(self, replications: int, arms: int, machine: MakeMachine = UCB):
        super().__init__(replications, arms)
        self.machine = machine(replications, arms, slots=arms)
        self.last = np.zeros(replications, dtype=np.int64)

    def select(self, rng: np.random.Generator) -> Pair:
        """Return the last right arm, and its machine's choice."""
        return self.last, self.machine.advance(rng, self.last)

    def update(self, action: Pair, feedback: np.ndarray) -> None:
        """Reward the left arm's machine if the right arm won."""
        super().update(action, feedback)
        self.machine.feedback(action[1], feedback, action[0])
        self.last = action[1]


class Sparring(DuelingPolicy):
    """Sparring (DoubleSBM on arXiv): two machines, each rewarded for winning. Its regret bound is a conjecture."""

    STATE: ClassVar[Names] = ("plays", "left", "right")

    def __init__(self, replications: int, arms: int, machine: MakeMachine = UCB):
        super().__init__(replications, arms)
        self.left, self.right = machine(replications, arms), machine(replications, arms)

    def select(self, rng: np.random.Generator) -> Pair:
        """Return both machines' arms."""
        return self.left.advance(rng), self.right.advance(rng)

    def update(self, action: Pair, feedback: np.ndarray) -> None:
        """Reward the winner's machine."""
        super().update(action, feedback)
        self.left.feedback(action[0], ~feedback)
        self.right.feedback(action[1], feedback)


class VersatileDB(Sparring):
    """Versatile-DB (Saha and Gaillard 2022, arXiv 2202.06694): sparring, with Tsallis-INF on both sides."""

    def __init__(self, replications: int, arms: int):
        super().__init__(replications, arms, TsallisINF)


class InterleavedFilter(DuelingPolicy):
    """Interleaved filter (Yue, Broder, Kleinberg and Joachims 2012); at the end the winner plays itself.

    Args:
        replications: independent copies.
        arms: number of arms.
        horizon: number of rounds.
        scale: intervals are ``± sqrt(scale * ln(T K^2) / n)``; 4 in the proof of lemma 4, 1 in practice.
    """

    STATE: ClassVar[Names] = ("plays", "incumbent", "alive", "wins", "counts")

    def __init__(self, replications: int, arms: int, horizon: int, scale: float = 4.0):
        super().__init__(replications, arms)
        self._log = scale * math.log(horizon * arms**2)
        self.incumbent = np.zeros(replications, dtype=np.int64)  # any arm: environments shuffle labels
        self.alive = np.ones((replications, arms), dtype=bool)
        self.alive[:, 0] = False  # challengers that are not eliminated
        self.wins = np.zeros((replications, arms))  # of the incumbent, against each
        self.counts = np.zeros((replications, arms))

    def select(self, rng: np.random.Generator) -> Pair:
        """Return the incumbent and the challenger with the fewest duels against it."""
        challenger = np.where(self.alive, self.counts, np.inf).argmin(1)
        return self.incumbent, np.where(self.alive.any(1), challenger, self.incumbent)

    def update(self, action: Pair, feedback: np.ndarray) -> None:
        """Eliminate a challenger that is significantly worse; a significantly better one becomes the incumbent."""
        super().update(action, feedback)
        rows, (_, challenger) = self._rows, action
        self.counts[rows, challenger] += 1
        self.wins[rows, challenger] += ~feedback
        count = self.counts[rows, challenger]
        lead = self.wins[rows, challenger] / count - 0.5
        radius = np.sqrt(self._log / count)
        playing = self.alive[rows, challenger]
        self.alive[rows, challenger] &= ~(playing & (lead > radius))
        for row in np.flatnonzero(playing & (lead < -radius)):
            behind = self.wins[row] > self.counts[row] / 2  # pruning: arms that lost to the old incumbent
            self.alive[row] &= ~behind
            self.alive[row, challenger[row]] = False
            self.incumbent[row] = challenger[row]
            self.wins[row] = self.counts[row] = 0

    def recommend(self) -> np.ndarray:
        """Return the incumbent."""
        return self.incumbent.copy()


class BeatTheMean(DuelingPolicy):
    """Beat the mean (Yue and Joachims 2011); at the end the winner plays itself.

    Args:
        replications: independent copies.
        arms: number of arms.
        horizon: number of rounds.
        scale: the intervals' constant, 3 gamma^2 in the paper (gamma = 1 under strong transitivity).
    """

    STATE: ClassVar[Names] = ("plays", "alive", "wins", "counts")

    def __init__(self, replications: int, arms: int, horizon: int, scale: float = 3.0):
        super().__init__(replications, arms)
        self._width = scale * math.sqrt(math.log(2 * horizon * arms))
        self.alive = np.ones((replications, arms), dtype=bool)
        self.wins = np.zeros((replications, arms, arms))
        self.counts = np.zeros((replications, arms, arms))

    def select(self, rng: np.random.Generator) -> Pair:
        """Return the arm with the fewest duels, and a random remaining one, possibly the same."""
        left = np.where(self.alive, self.counts.sum(2), np.inf).argmin(1)
        return left, draw(self.alive.astype(float), rng)

    def update(self, action: Pair, feedback: np.ndarray) -> None:
        """Eliminate the worst arm, and all duels with it, once it is significantly below the best."""
        super().update(action, feedback)
        left, right = action
        self.counts[self._rows, left, right] += 1
        self.wins[self._rows, left, right] += ~feedback
        counts = np.where(self.alive, self.counts.sum(2), np.inf)
        means = self.wins.sum(2) / np.maximum(self.counts.sum(2), 1)
        least = counts.min(1)
        spread = np.where(self.alive, means, -np.inf).max(1) - np.where(self.alive, means, np.inf).min(1)
        ready = (self.alive.sum(1) > 1) & (least > 0)
        ready &= spread >= 2 * self._width / np.sqrt(np.maximum(least, 1))
        for row in np.flatnonzero(ready):
            worst = np.where(self.alive[row], means[row], np.inf).argmin()
            self.alive[row, worst] = False
            for table in (self.wins, self.counts):
                table[row, worst, :] = table[row, :, worst] = 0

    def recommend(self) -> np.ndarray:
        """Return the remaining arm with the largest mean."""
        means = self.wins.sum(2) / np.maximum(self.counts.sum(2), 1)
        return np.where(self.alive, means, -1.0).argmax(1)


class _Confident(DuelingPolicy):
    """Optimistic estimates of every pair: ``wins / n + sqrt(alpha ln t / n)``."""

    STATE: ClassVar[Names] = ("plays", "wins", "clock")

    def __init__(self, replications: int, arms: int, alpha: float = 0.51):
        super().__init__(replications, arms)
        self.alpha, self.clock = alpha, 1
        self.wins = np.zeros((replications, arms, arms))  # [x, y]: x beat y
        self._diagonal = np.arange(arms)

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return upper and lower bounds of P(x beats y), ``(replications, arms, arms)``."""
        counts = self.wins + self.wins.transpose(0, 2, 1)
        played = np.maximum(counts, 1)
        mean, radius = self.wins / played, np.sqrt(self.alpha * math.log(self.clock) / played)
        upper, lower = np.where(counts > 0, mean + radius, 1.0), np.where(counts > 0, mean - radius, 0.0)
        for bound in (upper, lower):
            bound[:, self._diagonal, self._diagonal] = 0.5
        return upper, lower

    def update(self, action: Pair, feedback: np.ndarray) -> None:
        """Count the win; duels of an arm with itself are ignored."""
        super().update(action, feedback)
        winner, loser = np.where(feedback, action[::-1], action)
        self.wins[self._rows, winner, loser] += winner != loser
        self.clock += 1

    def recommend(self) -> np.ndarray:
        """Return the Copeland winner of the counts; ties go to the arm played most."""
        better = (self.wins > self.wins.transpose(0, 2, 1)).sum(2)
        return (better + self.plays / (1 + self.plays.sum(1, keepdims=True))).argmax(1)


class RUCB(_Confident):
    """Relative upper confidence bounds (Zoghi, Whiteson, Munos and de Rijke 2014, arXiv 1312.3393)."""

    STATE: ClassVar[Names] = ("plays", "wins", "clock", "favorite")

    def __init__(self, replications: int, arms: int, alpha: float = 0.51):
        super().__init__(replications, arms, alpha)
        self.favorite = np.full(replications, -1)  # none

    def select(self, rng: np.random.Generator) -> Pair:
        """Return a potential winner, and the arm with the largest upper bound against it."""
        upper, _ = self._bounds()
        may_win = np.all(upper >= 0.5, axis=2)
        number = may_win.sum(1)
        has_favorite = (self.favorite >= 0) & may_win[self._rows, self.favorite]
        self.favorite = np.where(has_favorite, self.favorite, -1)
        others = may_win.copy()
        others[self._rows[has_favorite], self.favorite[has_favorite]] = False
        play_favorite = has_favorite & ((rng.random(self.replications) < 0.5) | (number == 1))
        pool = np.where(number[:, None] == 0, True, np.where(others.any(1)[:, None], others, may_win))
        left = np.where(play_favorite, self.favorite, draw(pool.astype(float), rng))
        self.favorite = np.where(number == 1, may_win.argmax(1), self.favorite)
        right = random_argmax(upper[self._rows, :, left], rng)
        return left, right


class DoubleThompson(_Confident):
    """Double Thompson sampling, D-TS (Wu and Liu 2016, arXiv 1604.07101)."""

    def __init__(self, replications: int, arms: int, alpha: float = 0.51):
        super().__init__(replications, arms, alpha)
        self._upper_half = np.triu_indices(arms, 1)

    def select(self, rng: np.random.Generator) -> Pair:
        """Return the Copeland winner of one posterior draw, and its strongest opponent in a second draw."""
        upper, lower = self._bounds()
        rows = self._rows
        optimistic = (upper > 0.5).sum(2)
        candidates = optimistic == optimistic.max(1, keepdims=True)
        i, j = self._upper_half
        sampled = np.full_like(upper, 0.5)
        sampled[:, i, j] = rng.beta(self.wins[:, i, j] + 1, self.wins[:, j, i] + 1)
        sampled[:, j, i] = 1 - sampled[:, i, j]
        left = random_argmax(np.where(candidates, (sampled > 0.5).sum(2), -1.0), rng)
        against = rng.beta(self.wins[rows, :, left] + 1, self.wins[rows, left, :] + 1)
        against[rows, left] = 0.5
        uncertain = lower[rows, :, left] <= 0.5
        return left, random_argmax(np.where(uncertain, against, -1.0), rng)


def make_dueling(name: str, replications: int, arms: int, horizon: int, **options: Any) -> DuelingPolicy:
    """Return a dueling policy by its name; see `DUELING`.

    Args:
        name: one of `DUELING`.
        replications: independent copies.
        arms: number of arms.
        horizon: number of rounds, for policies that need it.
        options: options of the policy, such as ``alpha`` or ``machine``.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in DUELING:
        raise ValueError(f"no dueling policy is called '{name}'; there are {', '.join(DUELING)}")
    kind = DUELING[name]
    if kind in (InterleavedFilter, BeatTheMean):
        options["horizon"] = horizon
    return kind(replications, arms, **options)


DUELING: dict[str, Callable[..., DuelingPolicy]] = {
    "sparring": Sparring,
    "multisbm": MultiSBM,
    "doubler": Doubler,
    "interleaved-filter": InterleavedFilter,
    "beat-the-mean": BeatTheMean,
    "rucb": RUCB,
    "double-thompson": DoubleThompson,
    "versatile-db": VersatileDB,
    "uniform": Uniform,
}
