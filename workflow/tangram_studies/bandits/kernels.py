"""The dueling policies compiled by numba: the same distributions as `dueling.py`, many times faster.

Each kernel plays one replication with its own generator and returns cumulative regret at the checkpoints. Kernels draw
random numbers in another order than `dueling.py`, so that results differ; tests compare the distributions.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit

from tangram_studies.bandits.environments import Duels

_compiled = njit(cache=True, nogil=True, fastmath=False)


@_compiled
def _right_wins(preferences, left, right, rng):
    return rng.random() >= preferences[left, right]


@_compiled
def _pick_fresh(counts, rng):
    """Return a random unplayed arm, or -1."""
    fresh = 0
    for arm in range(len(counts)):
        fresh += counts[arm] == 0
    if fresh == 0:
        return -1
    pick = rng.integers(0, fresh)
    for arm in range(len(counts)):
        if counts[arm] == 0:
            if pick == 0:
                return arm
            pick -= 1
    return -1


@_compiled
def _ucb(counts, sums, alpha, rng):
    fresh = _pick_fresh(counts, rng)
    if fresh >= 0:
        return fresh
    clock = counts.sum()
    width = (alpha + 2) * np.log(clock) / 2
    best, largest = -np.inf, 0
    for arm in range(len(counts)):
        bound = sums[arm] / counts[arm] + np.sqrt(width / counts[arm])
        if bound > best:
            best, largest = bound, arm
    return largest


@_compiled
def _draw(weights, rng):
    left = rng.random() * weights.sum()
    for arm in range(len(weights)):
        left -= weights[arm]
        if left < 0:
            return arm
    return len(weights) - 1


@_compiled
def _sparring(preferences, gaps, rounds, checkpoints, alpha, rng):
    arms = len(gaps)
    counts, sums = np.zeros((2, arms)), np.zeros((2, arms))
    regret, curve, point = 0.0, np.zeros(len(checkpoints)), 0
    for played in range(1, rounds + 1):
        left, right = _ucb(counts[0], sums[0], alpha, rng), _ucb(counts[1], sums[1], alpha, rng)
        won = _right_wins(preferences, left, right, rng)
        counts[0, left] += 1
        counts[1, right] += 1
        sums[0, left] += not won
        sums[1, right] += won
        regret += (gaps[left] + gaps[right]) / 2
        if point < len(checkpoints) and played == checkpoints[point]:
            curve[point] = regret
            point += 1
    return curve


@_compiled
def _multisbm(preferences, gaps, rounds, checkpoints, alpha, rng):
    arms = len(gaps)
    counts, sums = np.zeros((arms, arms)), np.zeros((arms, arms))
    regret, curve, point, left = 0.0, np.zeros(len(checkpoints)), 0, 0
    for played in range(1, rounds + 1):
        right = _ucb(counts[left], sums[left], alpha, rng)
        won = _right_wins(preferences, left, right, rng)
        counts[left, right] += 1
        sums[left, right] += won
        regret += (gaps[left] + gaps[right]) / 2
        left = right
        if point < len(checkpoints) and played == checkpoints[point]:
            curve[point] = regret
            point += 1
    return curve


@_compiled
def _doubler(preferences, gaps, rounds, checkpoints, alpha, rng):
    arms = len(gaps)
    counts, sums, reference = np.zeros(arms), np.zeros(arms), np.zeros(arms)
    reference[0] = 1
    regret, curve, point, length, remaining = 0.0, np.zeros(len(checkpoints)), 0, 2, 2
    for played in range(1, rounds + 1):
        if remaining == 0:
            reference = counts.copy()  # the machine is new in every phase, so its counts are the phase's plays
            counts[:] = 0
            sums[:] = 0
            length *= 2
            remaining = length
        left, right = _draw(reference, rng), _ucb(counts, sums, alpha, rng)
        won = _right_wins(preferences, left, right, rng)
        counts[right] += 1
        sums[right] += won
        remaining -= 1
        regret += (gaps[left] + gaps[right]) / 2
        if point < len(checkpoints) and played == checkpoints[point]:
            curve[point] = regret
            point += 1
    return curve


@_compiled
def _bound(wins, x, y, log_clock, alpha, sign):
    if x == y:
        return 0.5
    count = wins[x, y] + wins[y, x]
    if count == 0:
        return 1.0 if sign > 0 else 0.0
    return wins[x, y] / count + sign * np.sqrt(alpha * log_clock / count)


@_compiled
def _random_largest(values, rng):
    best, ties, largest = -np.inf, 0, 0
    for arm in range(len(values)):
        if values[arm] > best:
            best, ties, largest = values[arm], 1, arm
        elif values[arm] == best:
            ties += 1
            if rng.random() * ties < 1:  # reservoir sampling: each tie has equal probability
                largest = arm
    return largest


@_compiled
def _rucb(preferences, gaps, rounds, checkpoints, alpha, rng):
    arms = len(gaps)
    wins, values, pool = np.zeros((arms, arms)), np.zeros(arms), np.zeros(arms)
    regret, curve, point, favorite = 0.0, np.zeros(len(checkpoints)), 0, -1
    for played in range(1, rounds + 1):
        log_clock = np.log(played)
        number, only = 0, -1
        for x in range(arms):
            pool[x] = 1.0
            for y in range(arms):
                if _bound(wins, x, y, log_clock, alpha, 1) < 0.5:
                    pool[x] = 0.0
                    break
            if pool[x] > 0:
                number += 1
                only = x
        if favorite >= 0 and pool[favorite] == 0:
            favorite = -1
        if number == 1:
            left = favorite = only
        elif number == 0:
            left = rng.integers(0, arms)
        elif favorite >= 0 and rng.random() < 0.5:
            left = favorite
        else:
            if favorite >= 0:
                pool[favorite] = 0.0
            left = _draw(pool, rng)
        for x in range(arms):
            values[x] = _bound(wins, x, left, log_clock, alpha, 1)
        right = _random_largest(values, rng)
        if left != right:
            if _right_wins(preferences, left, right, rng):
                wins[right, left] += 1
            else:
                wins[left, right] += 1
        regret += (gaps[left] + gaps[right]) / 2
        if point < len(checkpoints) and played == checkpoints[point]:
            curve[point] = regret
            point += 1
    return curve


@_compiled
def _double_thompson(preferences, gaps, rounds, checkpoints, alpha, rng):
    arms = len(gaps)
    wins, values, optimistic = np.zeros((arms, arms)), np.zeros(arms), np.zeros(arms)
    is_candidate = np.zeros(arms, dtype=np.bool_)
    regret, curve, point = 0.0, np.zeros(len(checkpoints)), 0
    for played in range(1, rounds + 1):
        log_clock, most = np.log(played), -1.0
        for x in range(arms):
            optimistic[x] = 0
            for y in range(arms):
                if x != y and _bound(wins, x, y, log_clock, alpha, 1) > 0.5:
                    optimistic[x] += 1
            most = max(most, optimistic[x])
        number, left = 0, 0
        for x in range(arms):
            is_candidate[x] = optimistic[x] == most
            values[x] = 0.0 if is_candidate[x] else -1.0
            if is_candidate[x]:
                number += 1
                left = x
        if number > 1:  # only candidates need a draw
            for x in range(arms):
                for y in range(x + 1, arms):
                    if is_candidate[x] or is_candidate[y]:
                        drawn = rng.beta(wins[x, y] + 1, wins[y, x] + 1)
                        if is_candidate[x] and drawn > 0.5:
                            values[x] += 1
                        if is_candidate[y] and drawn < 0.5:
                            values[y] += 1
            left = _random_largest(values, rng)
        for x in range(arms):
            if x == left:
                values[x] = 0.5
            elif _bound(wins, x, left, log_clock, alpha, -1) <= 0.5:
                values[x] = rng.beta(wins[x, left] + 1, wins[left, x] + 1)
            else:
                values[x] = -1.0
        right = _random_largest(values, rng)
        if left != right:
            if _right_wins(preferences, left, right, rng):
                wins[right, left] += 1
            else:
                wins[left, right] += 1
        regret += (gaps[left] + gaps[right]) / 2
        if point < len(checkpoints) and played == checkpoints[point]:
            curve[point] = regret
            point += 1
    return curve


@_compiled
def _tsallis(losses, eta, start, weights):
    """Fill ``weights`` and return the root that normalizes them."""
    least, arms = losses.min(), len(losses)
    root = min(max(start, least - 2 * np.sqrt(arms) / eta), least - 2 / eta)
    for _ in range(60):
        total, slope = 0.0, 0.0
        for arm in range(arms):
            distance = losses[arm] - root
            weights[arm] = 4 / (eta * distance) ** 2
            total += weights[arm]
            slope += 2 * weights[arm] / distance
        if abs(total - 1) < 1e-10:
            break
        root = min(root - (total - 1) / slope, least - 2 / eta)
    weights /= weights.sum()
    return root


@_compiled
def _versatile(preferences, gaps, rounds, checkpoints, alpha, rng):
    arms = len(gaps)
    losses, weights, roots = np.zeros((2, arms)), np.zeros((2, arms)), np.full(2, -np.sqrt(arms))
    chosen = np.zeros(2, dtype=np.int64)
    regret, curve, point = 0.0, np.zeros(len(checkpoints)), 0
    for played in range(1, rounds + 1):
        eta = 2 / np.sqrt(played)
        for side in range(2):
            roots[side] = _tsallis(losses[side], eta, roots[side], weights[side])
            chosen[side] = _draw(weights[side], rng)
        left, right = chosen[0], chosen[1]
        if _right_wins(preferences, left, right, rng):
            losses[0, left] += 1 / weights[0, left]
        else:
            losses[1, right] += 1 / weights[1, right]
        regret += (gaps[left] + gaps[right]) / 2
        if point < len(checkpoints) and played == checkpoints[point]:
            curve[point] = regret
            point += 1
    return curve


KERNELS = {
    "sparring": _sparring,
    "multisbm": _multisbm,
    "doubler": _doubler,
    "rucb": _rucb,
    "double-thompson": _double_thompson,
    "versatile-db": _versatile,
}
ALPHA = {"rucb": 0.51, "double-thompson": 0.51}  # others: 3


def run_kernel(
    name: str,
    environment: Duels,
    rounds: int,
    checkpoints: Sequence[int],
    seed: int | np.random.SeedSequence,
    threads: int = 1,
    alpha: float | None = None,
) -> np.ndarray:
    """Play the compiled policy, replications in parallel.

    Args:
        name: one of `KERNELS`.
        environment: the duels to play.
        rounds: number of rounds.
        checkpoints: increasing numbers of rounds.
        seed: seed of each replication's generator; results do not depend on ``threads``.
        threads: parallel replications.
        alpha: width of the confidence bounds; by default 3 for UCB machines, 0.51 for RUCB and D-TS.

    Returns:
        Cumulative regret, ``(checkpoints, replications)``.
    """
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    generators = [np.random.default_rng(child) for child in sequence.spawn(environment.replications)]
    kernel, points = KERNELS[name], np.asarray(checkpoints, dtype=np.int64)
    value = ALPHA.get(name, 3.0) if alpha is None else alpha

    def play(row: int) -> np.ndarray:
        return kernel(environment.preferences[row], environment.gaps[row], rounds, points, value, generators[row])

    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(play, range(environment.replications))), axis=1)
