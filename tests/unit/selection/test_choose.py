"""Choosing on a table: votes are orders without values, ties are halves, and duels are counted beside cells."""

import numpy as np
import pytest

from tangram.selection.choose import choose


class Table:
    """Scores that are there already, counted when they are looked at."""

    def __init__(self, values: np.ndarray, ordinal: bool):
        (self.arms, self.prompts), self.ordinal = values.shape, ordinal
        self.seen = np.zeros(values.shape, dtype=bool)
        self._values = values

    @property
    def cells(self) -> int:
        return int(self.seen.sum())

    def look(self, arms: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        self.seen[np.ix_(arms, prompts)] = True
        return self._values[np.ix_(arms, prompts)]


def noisy(arms: int = 6, prompts: int = 40) -> np.ndarray:
    rng = np.random.default_rng(0)
    return 0.3 * np.arange(arms)[:, None] + rng.normal(size=prompts) + rng.normal(size=(arms, prompts))


@pytest.mark.parametrize("policy", ["sign-halving", "uniform", "sparring", "double-thompson", "rucb"])
def test_votes_have_no_values(policy):
    """What keeps the order of candidates on every prompt changes nothing, however it distorts means."""
    values = noisy()
    distorted = values.argsort(0).argsort(0) ** 9 * np.random.default_rng(1).exponential(size=values.shape[1])
    found = [choose(policy, Table(v, True), 150, np.random.default_rng(2)) for v in (values, distorted)]
    assert found[0] == found[1]
    assert found[0].duels > 0


def test_a_policy_that_compares_values_takes_no_votes():
    with pytest.raises(ValueError, match="use sign-halving, which counts votes"):
        choose("paired-halving", Table(noisy(), True), 150, np.random.default_rng(0))
    assert choose("paired-halving", Table(noisy(), False), 150, np.random.default_rng(0)).duels == 0


@pytest.mark.parametrize("policy", ["sign-halving", "sparring"])
def test_a_tie_is_half_a_vote_for_either(policy):
    """Two that always tie: neither is ahead. A third that loses to both is never chosen."""
    values = np.zeros((3, 16))
    values[2] = 1
    chosen = [choose(policy, Table(values, True), 48, np.random.default_rng(seed)).candidate for seed in range(60)]
    assert 2 not in chosen
    if policy == "sparring":  # decided by coins; halving keeps the order that it had
        assert 15 < sum(chosen) < 45


def test_votes_are_counted_once_per_pair_and_prompt():
    table = Table(noisy(4, 12), True)
    # Two rounds: 24 cells are 6 prompts for 4 candidates, 24 more are the last 6 for 2 of them.
    assert choose("sign-halving", table, 48, np.random.default_rng(0)).duels == 6 * 6 + 1 * 6
    assert table.cells == 4 * 6 + 2 * 6
    many = Table(noisy(2, 3), True)
    assert choose("sparring", many, 1000, np.random.default_rng(0)).duels == 3  # there are no others
