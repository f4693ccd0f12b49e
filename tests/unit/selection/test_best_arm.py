"""Best-arm identification: budgets, ledgers, pairing, and replays of a table."""

import numpy as np
import pytest

from tangram.selection.best_arm import PairedHalving
from tangram_studies.bandits.dueling import Sparring
from tangram_studies.bandits.environments import Ledger, ScoreTable
from tangram_studies.bandits.halving import RoundRobinHalving
from tangram_studies.bandits.simulation import replay_duels, replay_halving


def table(arms: int = 16, prompts: int = 64, gap: float = 0.05, noise: float = 0.05, seed: int = 0) -> np.ndarray:
    """Scores whose differences between prompts dwarf those between candidates; candidate 0 is best."""
    rng = np.random.default_rng(seed)
    return gap * np.arange(arms)[:, None] + rng.normal(size=prompts) + noise * rng.normal(size=(arms, prompts))


@pytest.mark.parametrize("judge", ["values", "signs"])
@pytest.mark.parametrize("arms", [2, 5, 16])
@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_halving_keeps_its_budget_and_finds_the_best(judge, arms, share):
    budget = max(arms, int(share * arms * 64))
    replay = ScoreTable(table(arms, gap=0.5), 30, np.random.default_rng(1))
    policy = PairedHalving(30, arms, 64, budget, judge)
    assert (replay_halving(policy, replay, np.random.default_rng(2)) == 0).all()
    assert (replay.ledger.cells <= budget).all()
    assert replay.ledger.cells[0] == policy.cells
    assert not len(policy.select(np.random.default_rng(0))[1])


def test_one_round_with_the_full_budget_is_the_full_table():
    values = table(gap=0.002)
    replay = ScoreTable(values, 5, np.random.default_rng(1))
    policy = PairedHalving(5, 16, 64, 16 * 64, rounds=1)
    assert (replay_halving(policy, replay, np.random.default_rng(2)) == values.mean(1).argmin()).all()
    assert (replay.ledger.cells == 16 * 64).all()


def test_difficult_prompts_cancel():
    """Pairing: what all candidates share does not matter, however large."""
    values = table(gap=0.02)
    shifted = values + 100 * np.random.default_rng(3).normal(size=64)
    found = [
        replay_halving(
            PairedHalving(20, 16, 64, 256, judge), ScoreTable(v, 20, np.random.default_rng(1)), np.random.default_rng(2)
        )
        for judge in ("values", "signs")
        for v in (values, shifted)
    ]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[2], found[3])


def test_signs_withstand_an_outlier_that_values_do_not():
    values = table(gap=0.1, noise=0.01)
    values[0, 5] += 1e6
    replays = [ScoreTable(values, 10, np.random.default_rng(1)) for _ in range(2)]
    signs, means = (
        replay_halving(PairedHalving(10, 16, 64, 16 * 64, judge), replay, np.random.default_rng(0))
        for judge, replay in zip(("signs", "values"), replays, strict=True)
    )
    assert (signs == 0).all()
    assert (means != 0).all()


def test_votes_find_the_best_within_budget_despite_a_noisy_judge():
    replay = ScoreTable(table(8, prompts=200, gap=0.5), 20, np.random.default_rng(1), flip=0.2)
    policy = RoundRobinHalving(20, 8, 1500)
    assert (replay_halving(policy, replay, np.random.default_rng(2)) == 0).all()
    assert (replay.ledger.duels == policy.duels).all()
    assert policy.duels <= 1500


def test_a_budget_that_buys_nothing_is_refused():
    with pytest.raises(ValueError, match="does not suffice"):
        PairedHalving(1, 16, 64, 15)
    with pytest.raises(ValueError, match="does not suffice"):
        RoundRobinHalving(1, 16, 100)


def test_a_second_look_is_free():
    ledger = Ledger(2, 3, 4)
    for _ in range(2):
        ledger.look(np.array([0, 1]), np.array([2, 2]))
    ledger.look_all(np.array([[0, 1], [0, 1]]), np.array([[2, 3], [2, 3]]))
    assert ledger.cells.tolist() == [4, 4]


def test_a_policy_that_learns_nothing_finds_nothing_for_free():
    replay = ScoreTable(table(8), 400, np.random.default_rng(1))
    assert np.bincount(replay.candidates(np.zeros(400, dtype=int)), minlength=8).min() > 20
    assert np.array_equal(np.sort(replay.candidates(np.arange(8)[:, None]), 0), np.tile(np.arange(8)[:, None], 400))


def test_a_dueling_policy_is_charged_for_cells_and_for_duels():
    replay = ScoreTable(table(6, gap=1.0), 12, np.random.default_rng(1))
    found = replay_duels(Sparring(12, 6), replay, [10, 40, 80], np.random.default_rng(2), "cells", 3000)
    assert found.shape == (3, 12)
    assert (found[-1] == 0).mean() > 0.8
    assert (replay.ledger.duels >= replay.ledger.cells / 2).all()


@pytest.mark.parametrize("kind", ["values", "signs", "votes"])
def test_a_resumed_halving_goes_on_as_if_nothing_had_happened(kind):
    def make():
        return RoundRobinHalving(4, 8, 400) if kind == "votes" else PairedHalving(4, 8, 64, 300, kind)

    def step(policy, replay, rng):
        first, second = policy.select(rng)
        if kind == "votes":
            won = np.stack([replay.play(a, b, rng) for a, b in zip(first.T, second.T, strict=True)], 1)
            policy.update((first, second), won)
        else:
            policy.update((first, second), replay.look(first, second))

    replays = [ScoreTable(table(8, gap=0.01), 4, np.random.default_rng(1)) for _ in range(2)]
    rngs = [np.random.default_rng(2) for _ in range(2)]
    whole, first, second = make(), make(), make()
    for round_ in range(whole.rounds):
        if round_ == 1:
            second.load_state_dict(first.state_dict())
        step(whole, replays[0], rngs[0])
        step(first if round_ < 1 else second, replays[1], rngs[1])
    assert second.done
    assert np.array_equal(whole.recommend(), second.recommend())
