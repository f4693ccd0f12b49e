"""Verdicts on texts: against closed forms of t tests, and by simulation of their errors."""

import numpy as np
import pytest
from scipy import stats

from tangram.trials.verdicts import COMMON, OWN, compare, difference, mean_kl, sentence


def measured(rng, means: dict[str, float], draws: int = 3, sequences: int = 8, spread: float = 0.02):
    """Return KL of candidates on sequences of different difficulty, and of the child before training."""
    difficulty = rng.normal(0, 0.2, sequences)
    trained = {}
    for name, mean in means.items():
        draw = rng.normal(0, spread, (draws, 1))
        kl = 1 + mean + difficulty + draw + rng.normal(0, spread, (draws, sequences))
        trained[name] = {COMMON: kl, OWN: kl}
    before = {name: {COMMON: 1.5 + difficulty[None], OWN: 1.5 + difficulty[None]} for name in means}
    return trained, before


def test_without_variance_of_draws_it_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    one, other = rng.normal(1, 0.3, (2, 9))
    same = [np.tile(values, (4, 1)) for values in (one, other)]
    ours, theirs = difference(*same), stats.ttest_rel(one, other)
    bounds = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((bounds.low, bounds.high))


def test_without_variance_of_sequences_it_is_welchs_t_test():
    rng = np.random.default_rng(1)
    one, other = rng.normal(1, 0.3, 5), rng.normal(1, 0.1, 4)
    same = [np.tile(values[:, None], (1, 6)) for values in (one, other)]
    ours, bounds = difference(*same), stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((bounds.low, bounds.high))


def test_several_comparisons_widen_each_interval():
    kl = np.random.default_rng(2).normal(1, 0.3, (2, 3, 8))
    one, three = difference(*kl), difference(*kl, comparisons=3)
    assert three.low < one.low < one.high < three.high
    assert three.value == one.value == pytest.approx(kl[0].mean() - kl[1].mean())


def test_a_constant_has_no_error():
    found = mean_kl(np.full((3, 4), 0.5))
    assert (found.value, found.standard_error, found.low, found.high) == (0.5, 0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("means", "verdicts"),
    [
        ({"a": 0.0, "b": 0.2, "c": 0.3}, {"a": "best", "b": "worse", "c": "worse"}),
        ({"b": 0.3, "a": 0.0, "c": 0.001}, {"a": "tie", "b": "worse", "c": "tie"}),
        ({"a": 0.0, "b": 0.3}, {"a": "best", "b": "worse"}),
    ],
)
def test_verdicts_follow_the_intervals(means, verdicts):
    rows = compare(*measured(np.random.default_rng(3), means))
    common = [row for row in rows if row["heldout"] == COMMON]
    assert {row["candidate"]: row["verdict"] for row in common} == verdicts
    assert [row["kl"] for row in common] == sorted(row["kl"] for row in common)
    assert common[0]["difference"] is None
    for row in common[1:]:
        assert row["difference"] == pytest.approx(row["kl"] - common[0]["kl"])
        assert (row["difference_low"] > 0) == (row["verdict"] == "worse")
    for row in rows:
        assert row["change"] == pytest.approx(row["kl"] - row["kl_before"])
        assert row["change_high"] < 0
    assert len(rows) == 2 * len(means)
    line = sentence(rows)
    assert "\n" not in line
    assert line.startswith("a is the best" if verdicts["a"] == "best" else "a tie of ")


def test_equal_texts_are_called_a_tie_as_often_as_stated():
    rng, wrong, runs = np.random.default_rng(4), 0, 400
    for _ in range(runs):
        rows = compare(*measured(rng, {"a": 0.0, "b": 0.0, "c": 0.0}))
        wrong += any(row["verdict"] == "worse" for row in rows)
    assert wrong / runs < 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
