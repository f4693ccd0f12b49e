"""The power law of learning curves, on curves whose law is known."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

from tangram.report.learning_curve import PowerLaw, forecast

TOKENS = [0, 512, 1024, 2048, 4096, 8192, 16384]


def curve(exponent: float = 0.1, offset: float = 2000.0, start: float = 0.8, tokens: list[int] = TOKENS) -> np.ndarray:
    return start * (1 + np.array(tokens) / offset) ** -exponent


def noisy(values: np.ndarray, seed: int, noise: float) -> list[float]:
    return list(values * np.exp(noise * np.random.default_rng(seed).standard_normal(len(values))))


@pytest.mark.parametrize("exponent", [0.02, 0.1, 0.6])
@pytest.mark.parametrize("offset", [300.0, 5000.0])
def test_a_curve_without_noise_gives_back_its_law(exponent: float, offset: float) -> None:
    law = PowerLaw.fit(TOKENS, curve(exponent, offset))
    assert law.exponent == pytest.approx(exponent, rel=0.01)
    assert law.offset == pytest.approx(offset, rel=0.01)
    assert law.at(163_840) == pytest.approx(curve(exponent, offset, tokens=[163_840])[0], rel=1e-3)
    low, high = law.interval(163_840)
    assert low == pytest.approx(high, rel=0.01)


def test_the_fit_is_the_least_squares_one_of_another_library() -> None:
    values = noisy(curve(), 3, 0.02)

    def law(t: np.ndarray, level: float, exponent: float, log_offset: float) -> np.ndarray:
        return level - exponent * np.log1p(t / np.exp(log_offset))

    expected, _ = curve_fit(law, np.array(TOKENS), np.log(values), p0=[-0.2, 0.1, 7.0])
    found = PowerLaw.fit(TOKENS, values)
    assert [found.level, found.exponent] == pytest.approx(expected[:2], rel=0.02)
    assert np.log(found.offset) == pytest.approx(expected[2], rel=0.01)


def test_the_interval_contains_the_truth_as_often_as_it_says() -> None:
    truth = curve(tokens=[163_840])[0]
    covered, below = 0, 0
    for seed in range(400):
        low, high = PowerLaw.fit(TOKENS, noisy(curve(), seed, 0.01)).interval(163_840)
        covered += low <= truth <= high
        below += high < curve()[-1]
    assert 0.92 <= covered / 400 <= 0.99
    assert below > 300  # and it is narrow enough to promise a gain


def test_a_curve_that_falls_by_a_law_has_predictive_power() -> None:
    found = [forecast(TOKENS, noisy(curve(), seed, 0.003)) for seed in range(100)]
    assert sum(one.predicts for one in found) > 95
    assert all(one.now > one.then for one in found)


def test_a_curve_of_noise_alone_has_none() -> None:
    flat = np.full(len(TOKENS), 0.5)
    found = [forecast(TOKENS, noisy(flat, seed, 0.02)) for seed in range(200)]
    assert np.mean([one.low <= one.now <= one.high for one in found]) > 0.75
    assert np.mean([one.predicts and one.high < one.now for one in found]) < 0.1


def test_a_curve_that_rises_forecasts_a_rise() -> None:
    found = forecast(TOKENS, curve(exponent=-0.1))
    assert found.law.exponent == pytest.approx(-0.1, rel=0.01)
    assert found.then > found.now


def test_too_few_points_carry_no_law() -> None:
    assert forecast(TOKENS[:4], curve(tokens=TOKENS[:4])) is None
    assert forecast(TOKENS, [*curve()[:-1], 0.0]) is None
    with pytest.raises(ValueError, match="2 points do not determine three parameters"):
        PowerLaw.fit(TOKENS[:2], curve(tokens=TOKENS[:2]))
    assert PowerLaw.fit(TOKENS[:3], curve(tokens=TOKENS[:3])).interval(1e5) == (0.0, float("inf"))
