import numpy as np
import pytest

from tangram import timing
from tangram.timing import interleaved, interquartile_range, median_and_error


class Clock:
    """Time passes only while a function runs."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now

    def function(self, name, durations):
        durations = iter(durations)

        def run():
            self.log.append(name)
            self.now += next(durations)

        return run


def test_functions_take_turns_and_warm_up_calls_are_left_out():
    clock = Clock()
    functions = {"a": clock.function("a", [9, 8, 1, 2, 3]), "b": clock.function("b", [7, 7, 10, 20, 30])}
    samples = interleaved(functions, repeats=3, warmup=2, clock=clock)
    assert samples == {"a": [1, 2, 3], "b": [10, 20, 30]}
    assert "".join(clock.log) == "aabb" + "ab" * 3


def test_short_functions_are_repeated_within_a_sample(monkeypatch):
    monkeypatch.setattr(timing, "MINIMUM_SECONDS", 0.02)
    clock = Clock()
    durations = [1.0, 2**-8] + [2**-8, 2**-7] * 9  # 0.0039 s after warm-up: six calls make 0.02 s
    samples = interleaved({"a": clock.function("a", durations)}, repeats=3, warmup=2, clock=clock)
    assert samples["a"] == [1.5 * 2**-8] * 3
    assert len(clock.log) == 2 + 3 * 6


def test_the_device_is_waited_for_inside_every_sample():
    clock = Clock()
    pending = [0.0]

    def launch():  # asynchronous: returns at once, the work is done when synchronized
        pending[0] += 5

    def wait():
        clock.now += pending[0]
        pending[0] = 0

    assert interleaved({"a": launch}, repeats=2, warmup=1, synchronize=wait, clock=clock) == {"a": [5, 5]}


def test_interquartile_range_is_numpys():
    samples = np.random.default_rng(0).exponential(size=7).tolist()
    lower, upper = np.percentile(samples, [25, 75])
    assert interquartile_range(samples) == pytest.approx(upper - lower)


def test_standard_error_of_the_median_is_its_measured_spread():
    experiments = np.random.default_rng(0).normal(3.0, 2.0, size=(2000, 51))
    medians, errors = np.array([median_and_error(e.tolist()) for e in experiments]).T
    np.testing.assert_allclose(medians, np.median(experiments, axis=1))
    assert errors.mean() == pytest.approx(medians.std(), rel=0.05)
