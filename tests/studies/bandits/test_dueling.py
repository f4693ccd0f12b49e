"""Dueling policies: invariants of the reductions, resuming, and equal distributions of both engines."""

import itertools
from functools import partial

import numpy as np
import pytest
from scipy import stats

from tangram_studies.bandits.dueling import DUELING, Doubler, MultiSBM, Sparring, make_dueling
from tangram_studies.bandits.environments import ARXIV, UTILITIES, Duels, preferences_of
from tangram_studies.bandits.machines import MACHINES, UCB, TsallisINF, draw, tsallis_weights
from tangram_studies.bandits.simulation import has_numba, run_duels, simulate_duels


def arms(replications: int = 20, name: str = "arith", link: str = "linear") -> Duels:
    return Duels.of_utilities(UTILITIES[name], link, replications, np.random.default_rng(7))


def played(policy, environment: Duels, rounds: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng, found = np.random.default_rng(seed), []
    for _ in range(rounds):
        left, right = policy.select(rng)
        won = environment.play(left, right, rng)
        policy.update((left, right), won)
        found.append((left, right, won))
    return found


def test_the_right_arm_wins_as_often_as_the_linear_link_says():
    environment = Duels.of_utilities(UTILITIES["arith"], "linear", 20_000, np.random.default_rng(0))
    best = environment.gaps.argmin(1)
    worst = environment.gaps.argmax(1)
    share = environment.play(best, worst, np.random.default_rng(1)).mean()
    assert share == pytest.approx((1 - 0.8 + 0.2) / 2, abs=4 * np.sqrt(0.16 / 20_000))


def test_labels_are_shuffled_and_keep_what_belongs_to_an_arm():
    environment = arms(200)
    assert len(set(environment.gaps.argmin(1))) == 6
    for row in range(5):
        utilities = 0.8 - environment.gaps[row]
        assert environment.preferences[row] == pytest.approx(preferences_of(utilities, "linear"))


def test_1good_is_the_same_under_the_linear_and_natural_links():
    curves = [
        simulate_duels("sparring", arms(4, "1good", link), 300, [300], 3, "numpy") for link in ("linear", "natural")
    ]
    assert np.array_equal(*curves)


def test_multisbm_plays_every_right_arm_again_on_the_left():
    environment = arms()
    rounds = played(MultiSBM(20, 6), environment, 500)
    gaps = [
        sum(environment.gaps[np.arange(20), side] for side in sides) for sides in list(zip(*rounds, strict=True))[:2]
    ]
    assert np.abs(gaps[0] - gaps[1]).max() <= 1
    assert all(np.array_equal(now[0], before[1]) for before, now in itertools.pairwise(rounds))


def test_doublers_left_arms_cost_twice_the_former_right_ones():
    """In expectation: 2^(i+1) uniform draws from the multiset of the 2^i right arms of phase i."""
    environment = arms(2000)
    rounds = played(Doubler(2000, 6), environment, 2 + 4 + 8 + 16)
    gaps = np.array([[environment.gaps[np.arange(2000), side] for side in pair[:2]] for pair in rounds])
    right_before, left_now = gaps[6:14, 1].sum(0), gaps[14:30, 0].sum(0)
    difference = left_now - 2 * right_before
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(2000)
    assert right_before.mean() > 0.5


def test_doublers_machine_is_fresh_in_each_phase_of_fixed_arms():
    policy = Doubler(3, 6)
    references = []
    for _ in range(30):
        pair = policy.select(np.random.default_rng(0))
        references.append((policy.phase, policy.reference.copy(), policy.machine.counts.sum()))
        policy.update(pair, np.ones(3, dtype=bool))
    for phase in (1, 2, 3, 4):
        inside = [entry for entry in references if entry[0] == phase]
        assert len(inside) == 2**phase
        assert inside[0][2] == 0
        assert all(np.array_equal(inside[0][1], entry[1]) for entry in inside)
        assert inside[0][1].sum() == 3 * (2 ** (phase - 1) if phase > 1 else 1)


def test_sparring_rewards_the_winner_alone():
    policy = Sparring(2, 3)
    policy.update((np.array([0, 1]), np.array([2, 2])), np.array([True, False]))
    assert policy.left.sums.sum() == policy.right.sums.sum() == 1
    assert policy.left.sums[1, 0, 1] == policy.right.sums[0, 0, 2] == 1


def test_a_machines_clock_is_its_own():
    """MultiSBM's machines must count their own rounds: a rarely played one explores little."""
    machine = UCB(1, 2, slots=2)
    rng = np.random.default_rng(0)
    for _ in range(1000):
        machine.feedback(machine.advance(rng, 0), np.array([0.5]), 0)
    before = machine.counts[0, 1].copy()
    assert before.sum() == 0
    assert {int(machine.advance(np.random.default_rng(seed), 1)[0]) for seed in range(20)} == {0, 1}


def test_ucb_is_alpha_robust():
    """Pr[T_x > s] < (2/alpha) (s/2)^-alpha for s >= 4 alpha gap^-2 ln T (arXiv 1405.3396, definition 4.1)."""
    gap, horizon, alpha, copies = 0.4, 2000, 1.0, 400
    machine, rng = UCB(copies, 2, alpha=alpha), np.random.default_rng(0)
    means = np.array([0.7, 0.7 - gap])
    for _ in range(horizon):
        arm = machine.advance(rng)
        machine.feedback(arm, rng.random(copies) < means[arm])
    limit = 4 * alpha * gap**-2 * np.log(horizon)
    assert (machine.counts[:, 0, 1] > limit).mean() < 2 / alpha * (limit / 2) ** -alpha


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_every_machine_finds_the_best_of_two_arms(machine):
    bandit, rng = machine(50, 2), np.random.default_rng(0)
    for _ in range(400):
        arm = bandit.advance(rng)
        bandit.feedback(arm, rng.random(50) < np.array([0.9, 0.2])[arm])
    assert (bandit.counts[:, 0, 0] > bandit.counts[:, 0, 1]).all()


def test_tsallis_weights_add_to_one_and_fall_with_the_loss():
    losses = np.random.default_rng(0).exponential(20, (40, 7))
    weights, roots = tsallis_weights(losses, np.linspace(0.01, 2, 40), np.zeros(40))
    assert weights.sum(1) == pytest.approx(1)
    assert weights == pytest.approx(4 / (np.linspace(0.01, 2, 40)[:, None] * (losses - roots[:, None])) ** 2, rel=1e-6)
    assert (np.take_along_axis(weights, losses.argsort(1), 1)[:, ::-1] == np.sort(weights, 1)).all()


def test_draws_follow_their_weights():
    weights = np.array([1.0, 0.0, 3.0])
    drawn = draw(np.tile(weights, (8000, 1)), np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=3)
    assert counts[1] == 0
    assert stats.binomtest(int(counts[2]), 8000, 0.75).pvalue > 1e-3


@pytest.mark.parametrize("name", DUELING)
def test_every_policy_is_better_than_chance_or_says_so(name):
    environment = Duels.of_utilities((0.9, 0.3, 0.2, 0.1), "linear", 60, np.random.default_rng(0))
    policy = make_dueling(name, 60, 4, 2000)
    run_duels(policy, environment, 2000, [2000], np.random.default_rng(1))
    right = policy.recommend() == environment.gaps.argmin(1)
    assert right.mean() > 0.9


@pytest.mark.parametrize("name", DUELING)
def test_a_resumed_policy_goes_on_as_if_nothing_had_happened(name):
    environment = arms()
    whole, first, second = (make_dueling(name, 20, 6, 200) for _ in range(3))
    expected = played(whole, environment, 200)
    rng = np.random.default_rng(0)
    for policy, rounds in ((first, range(120)), (second, range(120, 200))):
        if policy is second:
            policy.load_state_dict(first.state_dict())
        for index in rounds:
            pair = policy.select(rng)
            assert all(np.array_equal(a, b) for a, b in zip(pair, expected[index], strict=False))
            policy.update(pair, environment.play(*pair, rng))
    assert np.array_equal(second.recommend(), whole.recommend())


def test_a_state_of_another_policy_is_refused():
    with pytest.raises(ValueError, match="is not one of Sparring"):
        Sparring(2, 3).load_state_dict(MultiSBM(2, 3).state_dict())
    with pytest.raises(ValueError, match="shape"):
        Sparring(2, 3).load_state_dict(Sparring(2, 4).state_dict())


def test_sparring_drives_any_machine():
    curves = {
        machine: run_duels(
            Sparring(40, 6, partial(MACHINES[machine])), arms(40), 1500, [1500], np.random.default_rng(2)
        ).mean()
        for machine in MACHINES
    }
    random = simulate_duels("uniform", arms(40), 1500, [1500], 0, "numpy").mean()
    assert all(regret < 0.75 * random for regret in curves.values()), (curves, random)
    assert isinstance(Sparring(1, 2, TsallisINF).left, TsallisINF)


def test_the_arxiv_matrix_has_an_arm_that_beats_all():
    environment = Duels.of_matrix(ARXIV, 3, np.random.default_rng(0))
    assert environment.gaps.min() == 0
    cyclic = np.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])
    with pytest.raises(ValueError, match="no arm"):
        Duels.of_matrix(cyclic, 3, np.random.default_rng(0))
    with pytest.raises(ValueError, match="must add to 1"):
        Duels(cyclic + 0.1, cyclic[0], 3, np.random.default_rng(0))


@pytest.mark.skipif(not has_numba(), reason="numba is an optional extra")
@pytest.mark.parametrize("name", ["sparring", "multisbm", "doubler", "rucb", "double-thompson", "versatile-db"])
def test_both_engines_draw_from_the_same_law(name):
    """Two-sample Kolmogorov-Smirnov on final regret, 300 replications each; arm sets with close arms and a cycle."""
    environment = Duels.of_utilities(UTILITIES["3good"], "logit", 300, np.random.default_rng(5))
    compiled, reference = (simulate_duels(name, environment, 400, [100, 400], 11, e) for e in ("numba", "numpy"))
    for one, other in zip(compiled, reference, strict=True):
        assert stats.ks_2samp(one, other).pvalue > 1e-3


def test_a_kernel_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="has no kernel"):
        simulate_duels("uniform", arms(2), 10, [10], 0, "numba")
    with pytest.raises(ValueError, match="there are sparring"):
        make_dueling("sparing", 1, 2, 3)
