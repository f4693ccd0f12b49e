"""Statistics of predicted and true scores, against counting pairs by hand."""

import itertools
import math

import numpy as np
import pytest

from tangram.selection.agreement import fidelity, kendall_tau, spearman_rho, top_k_regret, value_ratio


@pytest.mark.parametrize("seed", range(4))
def test_tau_counts_pairs_and_rho_correlates_ranks(seed):
    rng = np.random.default_rng(seed)
    predicted, true = rng.integers(0, 6, 12).astype(float), rng.normal(size=12)
    predicted[0], predicted[1] = 0.0, 0.0  # a tie
    pairs = list(itertools.combinations(range(12), 2))
    signs = [np.sign(predicted[i] - predicted[j]) * np.sign(true[i] - true[j]) for i, j in pairs]
    untied = sum(predicted[i] != predicted[j] for i, j in pairs)
    assert kendall_tau(predicted, true) == pytest.approx(sum(signs) / math.sqrt(untied * len(pairs)))
    ranks = [[(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values] for values in (predicted, true)]
    assert spearman_rho(predicted, true) == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_regret_is_the_loss_of_trusting_the_shortlist():
    predicted, true = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.5, 0.9, 0.2, 0.3])
    assert [top_k_regret(predicted, true, k) for k in (1, 2, 3, 4)] == pytest.approx([0.3, 0.3, 0.0, 0.0])
    assert value_ratio(predicted, true) == pytest.approx([2, 2 / 0.9, 15, 40 / 3])


def test_all_statistics_of_perfect_and_of_reversed_predictions():
    true = np.linspace(0.1, 1, 30)
    perfect, reversed_ = fidelity(2 * true, true), fidelity(1 - true, true)
    assert (perfect.children, perfect.tau, perfect.rho) == (30, pytest.approx(1), pytest.approx(1))
    assert perfect.regret == {1: 0, 5: 0, 10: 0}
    assert perfect.ratio == perfect.ratio_low == perfect.ratio_high == pytest.approx(2)
    assert reversed_.tau == reversed_.tau_low == pytest.approx(-1)
    assert reversed_.regret[1] == pytest.approx(0.9)
    assert list(fidelity(true[:4], true[:4]).regret) == [1]
    assert math.isnan(kendall_tau(np.ones(5), true[:5]))
    assert math.isnan(spearman_rho(np.ones(5), true[:5]))


def test_the_interval_covers_the_correlation_of_many_children():
    rng = np.random.default_rng(0)
    true = rng.normal(size=4000)
    predicted = true + rng.normal(size=4000)
    expected = kendall_tau(predicted, true)
    covered = 0
    for start in range(0, 4000, 200):
        rows = slice(start, start + 200)
        of_few = fidelity(predicted[rows], true[rows], draws=200)
        covered += of_few.tau_low <= expected <= of_few.tau_high
    assert covered >= 16  # of 20 intervals of 95 %
