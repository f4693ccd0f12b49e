import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from synthetic_run import PACKED, RIVALS, evaluation_rows, write_results

from tangram.report.comparison import (
    beside_uniform,
    compare,
    decide,
    interpolate,
    quality_kept,
    rank_correlation,
    scored_children,
)
from tangram.report.data import PACKED_KEY, PARENT_KEY, Estimate, Key, load_results
from tangram.tables import EVALUATION, SCORES, read_table, write_table

POINTS = [
    (Estimate(1.0, 0.0), Estimate(0.0, 0.0)),
    (Estimate(1.3, 0.01), Estimate(0.9, 0.03)),
    (Estimate(1.15, 0.02), Estimate(0.5, 0.02)),
]


@pytest.mark.parametrize("speed", [1.0, 1.07, 1.15, 1.2, 1.3])
def test_interpolation_is_linear_in_speed_in_any_order_of_points(speed):
    expected = np.interp(speed, [1.0, 1.15, 1.3], [0.0, 0.5, 0.9])
    assert interpolate(POINTS, Estimate(speed)).value == pytest.approx(expected)


@pytest.mark.parametrize("speed", [0.99, 1.31])
def test_nothing_is_extrapolated(speed):
    assert interpolate(POINTS, Estimate(speed)) is None


def test_standard_error_is_that_of_first_order_propagation():
    def at(values):
        low, middle, top, speed = values[:2], values[2:4], values[4:6], values[6]
        return np.interp(speed, [low[0], middle[0], top[0]], [low[1], middle[1], top[1]])

    center = np.array([1.0, 0.0, 1.15, 0.5, 1.3, 0.9, 1.22])
    errors = np.array([0.0, 0.0, 0.02, 0.02, 0.01, 0.03, 0.008])
    step = 1e-6
    slopes = [(at(center + step * unit) - at(center - step * unit)) / (2 * step) for unit in np.eye(7)]
    expected = math.sqrt(sum((slope * error) ** 2 for slope, error in zip(slopes, errors, strict=True)))
    assert interpolate(POINTS, Estimate(1.22, 0.008)).standard_error == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("difference", "verdict"), [(-0.5, "child"), (0.5, "baseline"), (-0.19, "tie"), (0.19, "tie"), (0.0, "tie")]
)
def test_less_than_two_standard_errors_is_a_tie(difference, verdict):
    assert decide(Estimate(difference, 0.1)) == verdict


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12))
def test_rank_correlation_equals_scipys_with_ties(pairs):
    first, second = zip(*pairs, strict=True)
    found = rank_correlation(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(first, second).statistic)


def test_an_unknown_error_counts_only_where_it_has_a_part():
    inf = math.inf
    assert decide(Estimate(-5.0, inf)) == decide(Estimate(-5.0, math.nan)) == "tie"
    points = [(Estimate(1.0, inf), Estimate(0.0, 0.1)), (Estimate(2.0), Estimate(0.0, inf))]
    assert interpolate(points, Estimate(1.0)) == Estimate(0.0, 0.1)
    assert interpolate(points, Estimate(1.5)).standard_error == inf


def test_rank_correlation_of_two_points_says_nothing():
    assert rank_correlation([1, 2], [1, 2]) is None


def value_of(folder, target, solution, model, task, metric):
    frame = read_table(folder / "targets" / target / solution / "evaluation.parquet", EVALUATION).set_index(
        ["model", "task", "metric"]
    )
    return frame["value"][model, task, metric]


def test_every_child_meets_the_baseline_at_its_measured_speed(complete):
    results = load_results(complete)
    found = compare(results, "kl", "finetuned")
    targets = list(results.settings.targets)
    assert [comparison.key for comparison in found] == [Key(target, "0", "finetuned") for target in targets]
    x = [1.0, *(value_of(complete, target, "layers-dropped", "child", "chat", "packed_speedup") for target in targets)]
    y = [0.0, *(value_of(complete, target, "layers-dropped", "finetuned", "heldout", "kl") for target in targets)]
    for comparison, target in zip(found, targets, strict=True):
        speed = value_of(complete, target, "0", "child", "chat", "packed_speedup")
        own = value_of(complete, target, "0", "finetuned", "heldout", "kl")
        assert comparison.speed.value == speed
        assert comparison.baseline.value == pytest.approx(np.interp(speed, x, y))
        assert comparison.difference.value == pytest.approx(own - np.interp(speed, x, y))


def write_pair(folder, child, baseline):
    """Write one target's child and baseline, each (speed-up over the packed parent, KL with an error of 2 %)."""
    for solution, (speed, kl) in (("0", child), ("layers-dropped", baseline)):
        path = folder / "targets" / "fast" / solution / "evaluation.parquet"
        write_table(evaluation_rows({"child": (kl, 4.0)}, speed * PACKED), EVALUATION, path)
    write_table(evaluation_rows({"parent": (0.0, 3.8)}, None), EVALUATION, folder / "parent_evaluation.parquet")
    return compare(load_results(folder), "kl", "child")[0]


@pytest.mark.parametrize(("kl", "verdict"), [(0.5, "child"), (0.99, ""), (1.5, "")])
def test_a_child_beyond_all_baselines_wins_only_if_it_is_better(tmp_path, kl, verdict):
    found = write_pair(tmp_path, (1.3, kl), (1.25, 1.0))
    assert (found.baseline.value, found.slower.value, found.verdict) == (1.0, pytest.approx(1.25), verdict)


def test_child_slower_than_the_parent_has_no_baseline(tmp_path):
    found = write_pair(tmp_path, (0.9, 0.5), (1.25, 1.0))
    assert (found.baseline, found.slower, found.verdict) == (None, None, "")


def test_sum_of_scores_adds_every_changed_piece_once(complete):
    frame = read_table(complete / "scores.parquet", SCORES)
    kl = frame[frame["metric"] == "kl"].set_index(["layer", "kind", "variant"])["value"]
    results = load_results(complete)
    children = {(child.target, child.solution): child for child in scored_children(results)}
    assert set(children) == set(results.architectures)
    for key, architecture in results.architectures.items():
        expected = sum(
            kl[layer, kind, getattr(choice, kind)]
            for layer, choice in enumerate(architecture.layers)
            for kind in ("attention", "ffn")
            if getattr(choice, kind) != "parent"
        )
        expected += kl[0, "head", architecture.head] if architecture.head != "parent" else 0
        assert children[key].score == pytest.approx(expected)


def test_uniform_rivals_meet_the_children_at_their_speed_and_kl(complete):
    results = load_results(complete)
    found = {rivalry.key.solution: rivalry for rivalry in beside_uniform(results, "finetuned")}
    assert list(found) == list(RIVALS)
    targets = list(results.settings.targets)
    speeds = [1.0, *(value_of(complete, target, "0", "child", "chat", "packed_speedup") for target in targets)]
    losses = [0.0, *(value_of(complete, target, "0", "finetuned", "heldout", "kl") for target in targets)]
    for solution, (speed, before) in RIVALS.items():
        rivalry, kl = found[solution], 0.72 * before
        assert (rivalry.speed.value, rivalry.kl.value) == pytest.approx((speed / PACKED, kl))
        assert rivalry.at_speed.children.value == pytest.approx(np.interp(speed / PACKED, speeds, losses))
        assert rivalry.at_kl.children.value == pytest.approx(np.interp(kl, losses, speeds))
        assert rivalry.at_speed.nearest is rivalry.at_kl.nearest is None
        lower, faster = kl > rivalry.at_speed.children.value, speed / PACKED < rivalry.at_kl.children.value
        assert rivalry.at_speed.verdict == ("child" if lower else "baseline")
        assert rivalry.at_kl.verdict == ("child" if faster else "baseline")


def rivalry_of(folder, child, rival):
    """Return the comparison of a rival with one target's child, each (speed-up over the packed parent, KL)."""
    for solution, (speed, kl) in (("0", child), ("uniform-int8", rival)):
        path = folder / "targets" / "fast" / solution / "evaluation.parquet"
        write_table(evaluation_rows({"child": (kl, 4.0)}, speed * PACKED), EVALUATION, path)
    write_table(evaluation_rows({"parent": (0.0, 3.8)}, None), EVALUATION, folder / "parent_evaluation.parquet")
    (found,) = beside_uniform(load_results(folder), "child")
    return found


@pytest.mark.parametrize(
    ("rival", "at_speed", "at_kl"),
    [
        ((1.25, 0.8), "child", "child"),  # the children: 0.5 at 1.25, and 1.4 at 0.8
        ((1.25, 0.505), "tie", "tie"),
        ((1.25, 0.3), "baseline", "baseline"),
        ((1.6, 0.8), "baseline", "baseline"),  # faster than every child, and closer
        ((1.6, 1.2), "", ""),  # faster than every child, but not as close
        ((1.4, 1.2), "child", "child"),  # less close than every child, and slower
        ((0.8, 0.1), "child", "child"),  # slower than the packed parent, whose KL is 0
    ],
)
def test_verdict_on_a_rival_within_and_beyond_the_children(tmp_path, rival, at_speed, at_kl):
    found = rivalry_of(tmp_path, (1.5, 1.0), rival)
    assert (found.at_speed.verdict, found.at_kl.verdict) == (at_speed, at_kl)


def test_a_run_without_packed_parent_claims_over_the_stock_one(complete, tmp_path):
    folder = write_results(tmp_path / "run", layers=4)
    for path in [*folder.glob("targets/*/*/evaluation.parquet"), folder / "parent_evaluation.parquet"]:
        frame = read_table(path, EVALUATION)
        stock = (frame["model"] != "packed parent") & (frame["metric"] != "packed_speedup")
        write_table(frame[stock].to_dict("records"), EVALUATION, path)
    results = load_results(folder)
    assert (load_results(complete).best_parent, results.best_parent) == (PACKED_KEY, PARENT_KEY)
    for comparison in compare(results, "kl", "finetuned"):
        assert comparison.speed.value == value_of(folder, comparison.key.target, "0", "child", "chat", "speedup")


def test_quality_kept_has_the_error_of_the_paired_difference(complete):
    results = load_results(complete)
    kept = quality_kept(results, Key("speed-1.2", "0", "child"))
    assert kept.value == pytest.approx((0.358 - 1.3 * 0.05) / 0.358)
    step, center = 1e-6, np.array([-1.3 * 0.05, 0.358])
    slopes = [
        (np.divide(*(center + step * unit)) - np.divide(*(center - step * unit))) / (2 * step) for unit in np.eye(2)
    ]
    assert kept.standard_error == pytest.approx(math.hypot(slopes[0] * 0.0187, slopes[1] * 0.0321), rel=1e-6)
    assert quality_kept(results, PARENT_KEY).value == 1
    assert quality_kept(results, Key("speed-1.4", "0", "child")) is None
