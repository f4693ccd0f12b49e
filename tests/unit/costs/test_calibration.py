from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.costs.calibration import (
    STOCK,
    calibrate,
    calibration_architectures,
    fit_scale,
    leave_one_out_errors,
    steady_seconds,
    stock_factors,
    sum_of_parts,
)
from tangram.errors import TangramError

LIBRARY = {"attention": ["gqa-1", "no-op"], "ffn": ["width-0.5", "linear", "no-op"], "head": ["parent@bf16"]}
SECONDS = {
    ("attention", "parent"): 3.0,
    ("attention", "gqa-1"): 2.0,
    ("attention", "no-op"): 0.0,
    ("ffn", "parent"): 8.0,
    ("ffn", "width-0.5"): 4.5,
    ("ffn", "linear"): 1.0,
    ("ffn", "no-op"): 0.0,
    ("head", "parent"): 13.0,
    ("head", "parent@bf16"): 6.0,
    ("model", "parent"): 7.0,
}
WORKLOADS = [("chat", "prefill", 4, 10.0), ("chat", "decode", 4, 1.0)]


@pytest.fixture
def costs():
    rows = []
    for scenario, phase, batch, factor in WORKLOADS:
        for (kind, variant), seconds in SECONDS.items():
            row = {"layer_class": 0, "kind": kind, "variant": variant, "scenario": scenario, "phase": phase}
            row["engine"] = "torch"
            parent = factor * SECONDS[kind, "parent"]
            rows.append({**row, "batch": batch, "seconds": factor * seconds, "parent_seconds": parent})
    return pd.DataFrame(rows)


def test_a_slow_job_is_scaled_back_by_the_parent_timed_beside_it(costs):
    moody = costs.copy()
    slow = moody.variant.isin(["gqa-1", "linear"])
    moody.loc[slow, ["seconds", "parent_seconds"]] *= 1.8
    np.testing.assert_allclose(steady_seconds(moody), costs.seconds)


def test_parts_of_a_model_are_summed_over_its_layers(costs):
    architecture = Architecture((LayerChoice(), LayerChoice("gqa-1", "linear"), LayerChoice("no-op", "width-0.5")))
    assert sum_of_parts(costs, architecture) == {
        ("chat", "prefill", 4): (10 * (3.0 + 8.0 + 2.0 + 1.0 + 4.5 + 13.0), 70.0),
        ("chat", "decode", 4): (3.0 + 8.0 + 2.0 + 1.0 + 4.5 + 13.0, 7.0),
    }
    lighter = sum_of_parts(costs, replace(architecture, head="parent@bf16"))
    assert lighter["chat", "decode", 4] == (3.0 + 8.0 + 2.0 + 1.0 + 4.5 + 6.0, 7.0)


def test_a_variant_without_costs_is_named(costs):
    with pytest.raises(TangramError, match=r"lacks ffn width-0\.25 for chat, decode, batch 4"):
        sum_of_parts(costs, Architecture((LayerChoice("parent", "width-0.25"),)))


def test_calibration_models_differ_and_hold_every_variant():
    architectures = calibration_architectures(LIBRARY, num_layers=7)
    assert len(set(architectures.values())) == 4
    assert {len(architecture.layers) for architecture in architectures.values()} == {7}
    assert architectures["parent"] == Architecture((LayerChoice(),) * 7)
    assert {choice.attention for choice in architectures["mixed"].layers} == {"parent", *LIBRARY["attention"]}
    assert {choice.ffn for choice in architectures["mixed"].layers} == {"parent", *LIBRARY["ffn"]}
    assert {architecture.head for architecture in architectures.values()} == {"parent", *LIBRARY["head"]}


def test_a_known_scale_is_recovered(costs):
    architectures = calibration_architectures(LIBRARY, num_layers=6)
    scales = {("chat", "prefill", 4): 0.93, ("chat", "decode", 4): 1.12}
    measured = {
        (scenario, phase, batch): {
            name: scales[scenario, phase, batch]
            * factor
            * (7.0 + sum(SECONDS[kind, variant] for _, kind, variant in architecture.pieces()))
            for name, architecture in architectures.items()
        }
        for scenario, phase, batch, factor in WORKLOADS
    }
    rows = pd.DataFrame(calibrate(costs, architectures, measured))
    assert len(rows) == 4 * len(WORKLOADS)
    assert rows.groupby(["scenario", "phase", "batch"])["scale"].first().to_dict() == pytest.approx(scales)
    predicted = rows.scale * (rows.subblock_seconds + rows.fixed_seconds)
    np.testing.assert_allclose(predicted, rows.measured_seconds)


def test_the_stock_parent_scales_the_reference_and_nothing_else(costs):
    architectures = calibration_architectures(LIBRARY, num_layers=4)
    workloads = [("chat", phase, 4) for phase in ("prefill", "decode")]
    packed = {workload: dict(zip(architectures, (5.0, 4.0, 3.0, 2.0), strict=True)) for workload in workloads}
    rows = pd.DataFrame(calibrate(costs, architectures, packed))
    assert stock_factors(rows) == {}
    both = {workload: {STOCK: 8.0, **seconds} for workload, seconds in packed.items()}
    with_stock = pd.DataFrame(calibrate(costs, architectures, both))
    assert stock_factors(with_stock) == dict.fromkeys(workloads, 8.0 / 5.0)
    pd.testing.assert_frame_equal(with_stock[with_stock.model != STOCK].reset_index(drop=True), rows)


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
