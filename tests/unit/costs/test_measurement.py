import math

import pytest

from tangram.config import Costs, Scenario
from tangram.costs.measurement import cost_row, decode_window, precise, ratio_error
from tangram.tables import COSTS


@pytest.mark.parametrize(("generate", "expected"), [(32, (142, 4)), (4, (128, 4)), (2, (128, 2))])
def test_the_timed_steps_are_centered_on_the_generated_tokens(generate: int, expected: tuple[int, int]) -> None:
    assert decode_window(Scenario(prefill=128, generate=generate, batch_sizes=(1,))) == expected


def test_a_ratio_is_of_seconds_in_the_same_round() -> None:
    samples = {"parent": [1.0, 2.0, 4.0], "linear": [0.5, 1.2, 1.6]}
    ratio, error = ratio_error(samples, "linear")
    deviation = math.sqrt((0.0**2 + 0.1**2 + 0.1**2) / 2)
    assert ratio == 0.5
    assert error == pytest.approx(math.sqrt(math.pi / 2) * deviation / math.sqrt(3))
    assert ratio_error(samples, "parent") == (1.0, 0.0)
    assert ratio_error(samples, "no-op") == (0.0, 0.0)


@pytest.mark.parametrize(("interval", "enough"), [(0.3, True), (0.27, False)])
def test_measurements_end_when_all_intervals_are_small(interval: float, enough: bool) -> None:
    """The 95 % interval of the ratio has a half-width of 28 % of it, by the test above."""
    samples = {"parent": [1.0, 2.0, 4.0], "linear": [0.5, 1.2, 1.6]}
    assert precise([samples], Costs(interval=interval)) is enough


def test_a_row_has_the_table_s_columns_and_a_no_op_costs_nothing() -> None:
    others = {"engine": "torch", "device": "cpu", "scenario": "chat", "phase": "decode", "batch": 1}
    sizes = {"parameters": 0, "parameter_bytes": 0, "kv_bytes_per_token": 0}
    row = cost_row({"parent": [1.0, 3.0]}, "ffn", "no-op", **others, **sizes)
    assert set(row) == set(COSTS.names)
    assert (row["seconds"], row["parent_seconds"], row["ratio_error"]) == (0.0, 2.0, 0.0)
