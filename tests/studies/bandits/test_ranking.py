"""Ranking: pair marginals, closed forms against enumeration, projections, bounds, unbiased estimates."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangram_studies.bandits import bandit_ranking, plackett_luce, ranking
from tangram_studies.bandits.environments import choice_sequence
from tangram_studies.bandits.simulation import run_ranking

LOGITS = np.array([0.0, 1.5, -0.7, 0.4, 2.2])
ORDERS = np.array(list(itertools.permutations(range(5))))
LAW = np.exp(plackett_luce.log_probability(ORDERS, np.broadcast_to(LOGITS, ORDERS.shape)))
logits = st.lists(st.floats(-6, 6), min_size=3, max_size=8).map(np.array)


def test_the_law_adds_to_one_and_its_moments_have_closed_forms():
    positions = plackett_luce.positions_of(ORDERS)
    mean = LAW @ positions
    assert LAW.sum() == pytest.approx(1)
    assert plackett_luce.mean_positions(LOGITS) == pytest.approx(mean, abs=1e-12)
    covariance = np.einsum("p,pi,pj->ij", LAW, positions, positions) - np.outer(mean, mean)
    assert plackett_luce.position_covariance(LOGITS) == pytest.approx(covariance, abs=1e-12)


def test_closed_forms_survive_extreme_weights():
    extreme = np.array([[0.0, 1e4, -1e4, 3.0], [0.0, 0.0, 0.0, 0.0]])
    covariance = plackett_luce.position_covariance(extreme)
    assert np.isfinite(covariance).all()
    assert covariance[0, 1] == pytest.approx(0, abs=1e-12)  # its position is certain
    assert covariance[1].diagonal() == pytest.approx((4**2 - 1) / 12)


@given(logits)
@settings(max_examples=200, deadline=None)
def test_the_covariance_lemma(values):
    """Cov(positions) >= sum over pairs of q_uv q_vu (e_u - e_v)(e_u - e_v)^T: the core of arXiv 1312.1530."""
    before = plackett_luce.pair_marginals(values)
    spread = before * before.T
    pairs = np.diag(spread.sum(1)) - spread
    least = np.linalg.eigvalsh(plackett_luce.position_covariance(values) - pairs)[0]
    assert least >= -1e-9 * max(1.0, np.trace(pairs))


@pytest.mark.parametrize("sampler", ["gumbel", "quicksort"])
def test_both_samplers_order_pairs_by_the_odds_of_their_weights(sampler):
    rng, draws = np.random.default_rng(0), 8000
    if sampler == "gumbel":
        drawn = plackett_luce.sample_positions(np.tile(LOGITS, (draws, 1)), rng)
    else:
        drawn = np.stack([plackett_luce.quicksort_positions(LOGITS, rng) for _ in range(draws)])
    before = (drawn[:, :, None] < drawn[:, None, :]).mean(0)
    expected = plackett_luce.pair_marginals(LOGITS)
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(before - expected) <= 4.5 * error).all()
    assert (np.sort(drawn, 1) == np.arange(5)).all()


def test_choix_finds_the_weights_that_orders_were_drawn_from():
    """Oracle of our sampler: choix' offline Plackett-Luce fit of 3,000 rankings."""
    choix = pytest.importorskip("choix")
    orders = plackett_luce.sample_positions(np.tile(LOGITS, (3000, 1)), np.random.default_rng(1)).argsort(1)
    fitted = choix.ilsr_rankings(5, orders.tolist(), alpha=1e-6)
    assert fitted - fitted.mean() == pytest.approx(LOGITS - LOGITS.mean(), abs=0.12)


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=5).map(np.array))
@settings(max_examples=100, deadline=None)
def test_projection_is_the_nearest_point_of_the_permutahedron(point):
    found = ranking.project_on_permutahedron(point)
    corners = np.array(list(itertools.permutations(range(len(point)))))
    assert ((corners - found) @ (point - found)).max() <= 1e-7  # the optimality condition of a projection
    assert found.sum() == pytest.approx(corners[0].sum())
    sums = np.sort(found).cumsum()
    assert (sums >= np.arange(len(point)).cumsum() - 1e-9).all()  # inside


def test_rounding_keeps_the_mean():
    rng = np.random.default_rng(0)
    mean = ranking.project_on_permutahedron(np.array([1.1, 1.4, 3.9, 1.2, 4.6, 2.8]))
    drawn = np.stack([ranking.round_to_permutation(mean, rng) for _ in range(4000)])
    assert (np.sort(drawn, 1) == np.arange(6)).all()
    assert np.abs(drawn.mean(0) - mean).max() < 4.5 * 2.5 / math.sqrt(4000)
    corner = np.array([3.0, 0, 1, 2])
    assert (ranking.round_to_permutation(corner, rng) == corner).all()


def policies(rounds: int, replications: int = 8, items: int = 6) -> list[ranking.RankingPolicy]:
    return [
        ranking.OnlineRank(replications, items, ranking.optimal_eta(items, 1, rounds)),
        ranking.OnlineRank(replications, items, ranking.optimal_eta(items, 1, rounds), "quicksort"),
        ranking.ProjectedGradient(replications, items, ranking.gradient_eta(items, 1, rounds)),
        ranking.PerturbedLeader(replications, items, math.sqrt(rounds)),
        ranking.PermELearn(replications, items, 0.2, items - 1),
        ranking.FollowTheLeader(replications, items),
    ]


@pytest.mark.parametrize("index", range(6))
def test_expected_positions_are_the_means_of_what_is_drawn(index):
    policy = policies(100, replications=600)[index]
    policy.scores += np.array([0.0, 2, 5, 5, 9, 3])
    rng = np.random.default_rng(0)
    expected = policy.expected_positions()[0]
    drawn = policy.select(rng)
    assert (np.sort(drawn, 1) == np.arange(6)).all()
    assert np.abs(drawn.mean(0) - expected).max() < 4.5 * 2.5 / math.sqrt(600)


@pytest.mark.parametrize("index", range(6))
def test_a_resumed_ranking_goes_on_as_if_nothing_had_happened(index):
    scores = np.random.default_rng(0).random((40, 8, 6))
    whole, first, second = (policies(40)[index] for _ in range(3))
    rngs = [np.random.default_rng(1) for _ in range(2)]
    for step, row in enumerate(scores):
        if step == 20:
            second.load_state_dict(first.state_dict())
        part = first if step < 20 else second
        one, other = whole.select(rngs[0]), part.select(rngs[1])
        assert np.array_equal(one, other)
        whole.update(one, row)
        part.update(other, row)
    assert np.array_equal(whole.recommend(), second.recommend())


@pytest.mark.parametrize("sequence", ["iid", "zipf", "drift", "round-robin"])
@pytest.mark.parametrize("chosen", [1, 3])
def test_online_rank_keeps_its_bound(sequence, chosen):
    rounds, items = 300, 10
    policy = ranking.OnlineRank(40, items, ranking.optimal_eta(items, chosen, rounds))
    loss, best = run_ranking(policy, sequence, chosen, rounds, np.random.default_rng(3))
    regret = loss - best
    assert regret.mean() + 4 * regret.std() / math.sqrt(40) <= ranking.upper_bound(items, chosen, rounds)


def test_follow_the_leader_fails_where_online_rank_does_not():
    items, rounds = 10, 400
    follower = run_ranking(ranking.FollowTheLeader(1, items), "round-robin", 1, rounds, np.random.default_rng(0))
    assert follower[0] == (items - 1) * rounds  # every chosen item was last
    policy = ranking.OnlineRank(1, items, ranking.optimal_eta(items, 1, rounds))
    loss, best = run_ranking(policy, "round-robin", 1, rounds, np.random.default_rng(0))
    assert loss - best < ranking.upper_bound(items, 1, rounds)


def test_a_loss_sums_over_pairs_and_the_best_is_best_on_each():
    rng = np.random.default_rng(0)
    scores, positions = rng.random(6), rng.permutation(6)
    pairs = sum(scores[v] if positions[u] < positions[v] else scores[u] for u, v in itertools.combinations(range(6), 2))
    assert scores @ positions == pytest.approx(pairs)
    best = ranking.FollowTheLeader(1, 6)
    best.update(positions[None], scores[None])
    assert scores @ best.recommend()[0] == pytest.approx(min(scores @ p for p in itertools.permutations(range(6))))


def test_a_sequence_has_as_many_ones_as_were_asked_for():
    for kind in ("iid", "zipf", "drift", "round-robin"):
        for scores in choice_sequence(kind, 7, 3, 20, 4, np.random.default_rng(0)):
            assert (scores.sum(1) == 3).all()
    with pytest.raises(ValueError, match="no sequence"):
        next(choice_sequence("else", 7, 3, 20, 4, np.random.default_rng(0)))


def test_sinkhorn_of_the_product_is_the_rounds_one_by_one():
    """PermELearn scales the product of all rounds once; the paper scales every round."""
    policy = ranking.PermELearn(1, 4, 0.7, 3)
    rng = np.random.default_rng(0)
    matrix = np.full((4, 4), 0.25)
    for _ in range(5):
        scores = rng.random(4)
        policy.update(np.zeros((1, 4)), scores[None])
        matrix = matrix * np.exp(-0.7 * scores[:, None] * np.arange(4) / 3)
        for _ in range(500):
            matrix /= matrix.sum(1, keepdims=True)
            matrix /= matrix.sum(0, keepdims=True)
    assert policy.matrix()[0] == pytest.approx(matrix, abs=1e-7)


# --- bandit feedback --------------------------------------------------------------------------------------------------

RANKINGS = bandit_ranking.all_rankings(5)


def law_of(policy) -> np.ndarray:
    """Return the probability of each of `RANKINGS`."""
    if isinstance(policy, bandit_ranking.CombBand):
        return policy.probabilities()[0]
    items = RANKINGS.argsort(1)
    weights = np.broadcast_to(policy.eta * policy.losses[0], items.shape)
    drawn = np.exp(plackett_luce.log_probability(items, weights))
    return (1 - policy.gamma) * drawn + policy.gamma / len(RANKINGS)


@pytest.mark.parametrize("kind", [bandit_ranking.BanditRank, bandit_ranking.CombBand])
def test_estimates_are_unbiased(kind):
    policy = kind(len(RANKINGS), 5, 0.3, 0.1)
    policy.losses += np.array([3.0, -1, 4, -1, 5])
    hidden = np.array([0.1, -0.2, 0.05, 0.0, 0.3])
    estimates = policy.estimate(RANKINGS, RANKINGS @ hidden)
    assert law_of(policy) @ estimates == pytest.approx(hidden, abs=1e-12)


@pytest.mark.parametrize("kind", [bandit_ranking.BanditRank, bandit_ranking.CombBand])
def test_rankings_are_drawn_from_the_law_that_estimates_assume(kind):
    policy = kind(6000, 5, 0.3, 0.3)
    policy.losses += np.array([3.0, -1, 4, -1, 5])
    drawn = policy.select(np.random.default_rng(0))
    moment = np.einsum("ri,rj->ij", drawn, drawn) / 6000
    assert np.abs(moment - policy.second_moment()[0]).max() < 4.5 * 7 / math.sqrt(6000)


def test_uniform_rankings_have_leverage_n():
    moment = bandit_ranking.uniform_second_moment(5)
    assert moment == pytest.approx(np.einsum("pi,pj->ij", RANKINGS, RANKINGS) / len(RANKINGS))
    leverage = np.einsum("pi,ij,pj->p", RANKINGS, np.linalg.inv(moment), RANKINGS)
    assert leverage == pytest.approx(5)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_ryser_is_the_permanent(size, seed):
    matrix = np.random.default_rng(seed).normal(size=(size, size))
    direct = sum(math.prod(matrix[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(size)))
    assert bandit_ranking.permanent(matrix) == pytest.approx(direct, abs=1e-9)


def test_permanents_sample_what_enumeration_says():
    policy = bandit_ranking.CombBand(1, 4, 0.4, 0.0)
    policy.losses += np.array([1.0, 0.2, -0.5, 2.0])
    rng, draws = np.random.default_rng(0), 2000
    sampled = [tuple(bandit_ranking.sample_by_permanents(policy.losses[0], 0.4, rng)) for _ in range(draws)]
    for ranking_, probability in zip(bandit_ranking.all_rankings(4), policy.probabilities()[0], strict=True):
        share = sampled.count(tuple(ranking_)) / draws
        assert abs(share - probability) <= 4.5 * math.sqrt(probability * (1 - probability) / draws)
    normalizer = bandit_ranking.permanent(np.exp(-0.4 * np.outer(policy.losses[0], np.arange(1, 5))))
    direct = np.exp(-0.4 * bandit_ranking.all_rankings(4) @ policy.losses[0]).sum()
    assert normalizer == pytest.approx(direct)


@pytest.mark.parametrize("kind", [bandit_ranking.BanditRank, bandit_ranking.CombBand])
def test_a_resumed_bandit_goes_on_as_if_nothing_had_happened(kind):
    hidden = np.random.default_rng(0).random((60, 8, 5)) / 15
    whole, first, second = (kind(8, 5, 0.3, 0.2) for _ in range(3))
    rngs = [np.random.default_rng(1) for _ in range(2)]
    for step, row in enumerate(hidden):
        if step == 30:
            second.load_state_dict(first.state_dict())
        part = first if step < 30 else second
        one, other = whole.select(rngs[0]), part.select(rngs[1])
        assert np.array_equal(one, other)
        whole.update(one, (one * row).sum(1))
        part.update(other, (other * row).sum(1))
    assert np.array_equal(whole.recommend(), second.recommend())
    assert not np.array_equal(first.losses, second.losses)  # a state is a copy


def test_eight_items_are_too_many_for_exact_combband():
    with pytest.raises(ValueError, match="40320"):
        bandit_ranking.CombBand(1, 8, 0.1, 0.1)
