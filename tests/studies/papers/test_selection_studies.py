"""The studies of bandits, ranking and selection at a tiny size: they run, are consistent, and reach their verdicts."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tangram_studies.bandits import simulation
from tangram_studies.bandits.ranking import FollowTheLeader
from tangram_studies.papers import bandit_ranking, dueling, online_ranking, selection
from tangram_studies.papers.selection import layers, replay
from tangram_studies.study import Interval, Study, render_study

TINY = {
    dueling: dueling.Scale(3, 3, 3, 128, (64, 128), (9, 9), (0.4, 300, 50)),
    online_ranking: online_ranking.Scale(4, 2, 4, 8, 4, 2, ((10, 1, 30), (12, 2, 30)), 40, 20, 50),
    bandit_ranking: bandit_ranking.Scale(60, (20, 80), 40),
}


@pytest.fixture
def without_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable compilation, which takes seconds, and timing, which differs between runs."""
    for module in (simulation, dueling):
        monkeypatch.setattr(module, "has_numba", lambda: False)
    monkeypatch.setattr(
        online_ranking, "seconds_per_round", lambda policy, repeats: np.full(repeats, 1e-6) * policy.items
    )
    monkeypatch.setattr(
        bandit_ranking, "seconds_per_step", lambda policy, repeats: np.full(repeats, 1e-6) * policy.items**3
    )


@pytest.mark.parametrize("module", TINY, ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_study_gives_the_same_claims_twice_and_a_page(module, without_clocks, monkeypatch):
    first = module.reproduce(TINY[module], 1)
    monkeypatch.setattr(module, "draw_lines", lambda *_: "")  # drawing takes most of the time
    second = module.reproduce(TINY[module], 1)
    assert first.claims == second.claims
    assert first.measurements == second.measurements
    assert len({claim.claim for claim in first.claims}) == len(first.claims)
    page = render_study(first)
    assert all(claim.claim in page for claim in first.claims)
    assert page.count("<svg") >= 1


def evidence(best: int = 2) -> selection.Evidence:
    rng = np.random.default_rng(0)
    quality = np.linspace(0.2, 0.9, 8)
    quality[[0, best]] = quality[[best, 0]]
    tables = [
        q[:, None] + rng.normal(size=n) + 0.1 * rng.normal(size=(8, n)) for q, n in ((quality, 48), (quality, 24))
    ]
    importance = np.arange(6) + rng.exponential(size=(40, 6))
    return selection.Evidence(*tables, quality, 32, importance, np.repeat(["one", "other"], 20), 0.3)


def test_the_study_of_selection_judges_by_the_full_table():
    study = selection.reproduce(evidence(), selection.Scale(8, 48, 32, 4, (60, 300), 300, 60), 0)
    claims = {claim.claim: claim for claim in study.claims}
    assert claims["fraction"].verdict == "supported"  # gaps of 0.1 against noise of 0.1
    assert claims["worth-it"].verdict == "supported"
    assert {"default", "layers-mix", "layers-switching"} <= claims.keys()
    assert claims["worth-it"].estimate == pytest.approx(0.2, abs=0.1)
    full = study.frame("tokens")
    full = full[(full["arm"] == replay.UNIFORM) & (full["x"] == 1) & (full["metric"] == "simple regret")]
    assert (full["value"] == 0).all()
    assert render_study(study).count("<svg") >= 3


def test_epsilon_is_the_paired_standard_error_of_the_best_two():
    values = np.array([[0.0, 1, 2, 3], [0.1, 1.2, 2.1, 3.2], [9, 9, 9, 9]])
    difference = values[0] - values[1]
    assert replay.epsilon_of(values) == pytest.approx(stats.sem(difference))


def test_switching_domains_take_turns():
    found = evidence()
    low = np.where(np.arange(6) < 2, 0, 9)  # one domain does not need the first two layers, the other not the last
    found = replace(found, importance=np.where((found.domains == "one")[:, None], low, low[::-1]))
    named = layers.calibration_batches(found, True, 16, 2, np.random.default_rng(0))
    first, last = np.array([1, 1, 0, 0, 0, 0]), np.array([0, 0, 0, 0, 1, 1])
    assert np.array_equal(named, np.repeat([first, last] * 4, 2, axis=0))


def test_regret_is_against_the_best_fixed_ranking_so_far():
    named = (np.random.default_rng(0).random((12, 3, 4)) < 0.4).astype(float)
    found = layers.ranking_regret(FollowTheLeader(3, 4), named)
    for replication in range(3):
        rows, summed, loss = named[:, replication], np.zeros(4), 0.0
        for round_, row in enumerate(rows):
            order = sorted(range(4), key=lambda item: (-summed[item], item))
            loss += sum(place * row[item] for place, item in enumerate(order))
            summed += row
            best = min(summed @ np.array(positions) for positions in itertools.permutations(range(4)))
            assert found[round_, replication] == pytest.approx(loss - best)


@pytest.mark.parametrize(
    ("lows", "highs", "expected"),
    [([1, 1], [2, 2], "supported"), ([1, -1], [2, 2], "inconclusive"), ([1, -2], [2, -1], "refuted")],
)
def test_one_panel_that_is_below_refutes_what_is_said_of_all(lows, highs, expected):
    found = {str(i): Interval((a + b) / 2, a, b) for i, (a, b) in enumerate(zip(lows, highs, strict=True))}
    assert dueling.over_panels(found)[0] == expected


def test_welch_is_scipys():
    rng = np.random.default_rng(0)
    one, other = rng.normal(1, 1, 30), rng.normal(0, 3, 20)
    found = dueling.welch(one, other)
    expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_jackknife_covers_a_ratio_of_means():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(300):
        base = rng.exponential(1, 40)
        found = dueling.jackknife_ratio(3 * base + rng.normal(0, 1, 40), base)
        inside += found.low <= 3 <= found.high
    assert 0.9 < inside / 300 <= 0.99


def test_studies_know_their_number_of_rows():
    environment = dueling.all_panels(2, np.random.default_rng(0))
    assert environment.replications == 2 * len(dueling.ALL_PANELS) == 32
    assert isinstance(Study("a", "b", "c"), Study)
