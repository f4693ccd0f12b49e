import numpy as np
import pandas as pd
import pytest

from tangram.blocks.architecture import LayerChoice
from tangram.costs.calibration import (
    calibrate,
    calibration_architectures,
    fit_scale,
    leave_one_out_errors,
    steady_seconds,
    sum_of_parts,
)
from tangram.errors import TangramError

LIBRARY = {"attention": ["gqa-1", "no-op"], "ffn": ["width-0.5", "linear", "no-op"]}
SECONDS = {
    ("attention", "parent"): 3.0,
    ("attention", "gqa-1"): 2.0,
    ("attention", "no-op"): 0.0,
    ("ffn", "parent"): 8.0,
    ("ffn", "width-0.5"): 4.5,
    ("ffn", "linear"): 1.0,
    ("ffn", "no-op"): 0.0,
    ("model", "parent"): 20.0,
}
WORKLOADS = [("chat", "prefill", 4, 10.0), ("chat", "decode", 4, 1.0)]


@pytest.fixture
def costs():
    rows = []
    for scenario, phase, batch, factor in WORKLOADS:
        for (kind, variant), seconds in SECONDS.items():
            row = {"layer_class": 0, "kind": kind, "variant": variant, "scenario": scenario, "phase": phase}
            parent = factor * SECONDS[kind, "parent"]
            rows.append({**row, "batch": batch, "seconds": factor * seconds, "parent_seconds": parent})
    return pd.DataFrame(rows)


def test_a_slow_job_is_scaled_back_by_the_parent_timed_beside_it(costs):
    moody = costs.copy()
    slow = moody.variant.isin(["gqa-1", "linear"])
    moody.loc[slow, ["seconds", "parent_seconds"]] *= 1.8
    np.testing.assert_allclose(steady_seconds(moody), costs.seconds)


def test_parts_of_a_model_are_summed_over_its_layers(costs):
    architecture = (LayerChoice(), LayerChoice("gqa-1", "linear"), LayerChoice("no-op", "width-0.5"))
    assert sum_of_parts(costs, architecture) == {
        ("chat", "prefill", 4): (10 * (3.0 + 8.0 + 2.0 + 1.0 + 4.5), 200.0),
        ("chat", "decode", 4): (3.0 + 8.0 + 2.0 + 1.0 + 4.5, 20.0),
    }


def test_a_variant_without_costs_is_named(costs):
    with pytest.raises(TangramError, match=r"lacks ffn width-0\.25 for chat, decode, batch 4"):
        sum_of_parts(costs, (LayerChoice("parent", "width-0.25"),))


def test_calibration_models_differ_and_hold_every_variant():
    architectures = calibration_architectures(LIBRARY, num_layers=7)
    assert len(set(architectures.values())) == 4
    assert {len(architecture) for architecture in architectures.values()} == {7}
    assert set(architectures["parent"]) == {LayerChoice()}
    assert {choice.attention for choice in architectures["mixed"]} == {"parent", *LIBRARY["attention"]}
    assert {choice.ffn for choice in architectures["mixed"]} == {"parent", *LIBRARY["ffn"]}


def test_a_known_scale_is_recovered(costs):
    architectures = calibration_architectures(LIBRARY, num_layers=6)
    scales = {("chat", "prefill", 4): 0.93, ("chat", "decode", 4): 1.12}
    measured = {
        (scenario, phase, batch): {
            name: scales[scenario, phase, batch]
            * factor
            * (20.0 + sum(SECONDS["attention", c.attention] + SECONDS["ffn", c.ffn] for c in architecture))
            for name, architecture in architectures.items()
        }
        for scenario, phase, batch, factor in WORKLOADS
    }
    rows = pd.DataFrame(calibrate(costs, architectures, measured))
    assert len(rows) == 4 * len(WORKLOADS)
    assert rows.groupby(["scenario", "phase", "batch"])["scale"].first().to_dict() == pytest.approx(scales)
    predicted = rows.scale * (rows.subblock_seconds + rows.fixed_seconds)
    np.testing.assert_allclose(predicted, rows.measured_seconds)


def test_the_scale_minimizes_squared_relative_errors():
    rng = np.random.default_rng(0)
    measured = rng.uniform(1, 9, 5)
    predicted = measured * rng.normal(0.8, 0.2, 5)
    least_squares = np.linalg.lstsq((predicted / measured)[:, None], np.ones(5), rcond=None)[0]
    assert fit_scale(predicted.tolist(), measured.tolist()) == pytest.approx(least_squares[0])


def test_left_out_models_are_predicted_by_the_others():
    errors = leave_one_out_errors([1.0, 2.0, 4.0], [2.0, 4.0, 10.0])
    assert errors[2] == pytest.approx(2 * 4.0 / 10.0 - 1)  # the other two give a scale of exactly 2
    assert leave_one_out_errors([1.0, 2.0, 3.0], [1.5, 3.0, 4.5]) == pytest.approx([0, 0, 0])
