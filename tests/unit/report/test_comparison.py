import math
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from synthetic_run import CHANCE, PACKED, PRIMARY, RIVALS, TASKS, write_child, write_parent, write_results

from tangram.report.comparison import (
    beside_uniform,
    compare,
    decide,
    quality_difference,
    quality_kept,
    rank_correlation,
    scored_children,
)
from tangram.report.estimates import PACKED_KEY, PARENT_KEY, Estimate, Key
from tangram.report.interpolation import Point, loss_at, speed_at
from tangram.report.loading import load_results
from tangram.tables import EVALUATION, SCORES, SPEEDS, read_table, write_table

POINTS = [
    Point(Estimate(1.0, 0.0), Estimate(0.0, 0.0)),
    Point(Estimate(1.3, 0.01), Estimate(0.9, 0.03)),
    Point(Estimate(1.15, 0.02), Estimate(0.5, 0.02)),
]


def interpolate(points, speed, logarithmic=False):
    found = loss_at(points, Point(speed, Estimate(0.0)), logarithmic)
    return found and found.value


@pytest.mark.parametrize("speed", [1.0, 1.07, 1.15, 1.2, 1.3])
def test_interpolation_is_linear_in_speed_in_any_order_of_points(speed):
    expected = np.interp(speed, [1.0, 1.15, 1.3], [0.0, 0.5, 0.9])
    assert interpolate(POINTS, Estimate(speed)).value == pytest.approx(expected)


@pytest.mark.parametrize("speed", [1.0, 1.07, 1.15, 1.2, 1.3])
def test_logarithms_are_interpolated_between_positive_losses(speed):
    linear, log = np.interp(speed, [1.0, 1.15], [0.0, 0.5]), np.interp(speed, [1.15, 1.3], np.log([0.5, 0.9]))
    expected = linear if speed < 1.15 else math.exp(log)
    assert interpolate(POINTS, Estimate(speed), True).value == pytest.approx(expected)
    if expected > 0:
        assert speed_at(POINTS, Point(Estimate(1.0), Estimate(expected)), True).value.value == pytest.approx(speed)


@pytest.mark.parametrize("speed", [0.99, 1.31])
def test_nothing_is_extrapolated(speed):
    assert interpolate(POINTS, Estimate(speed)) is None
    assert speed_at(POINTS, Point(Estimate(1.0), Estimate(speed - 0.4)), True) is None or speed < 1


@pytest.mark.parametrize("logarithmic", [False, True])
def test_standard_error_is_that_of_first_order_propagation(logarithmic):
    def at(values):
        low, middle, top, speed = values[:2], values[2:4], values[4:6], values[6]
        if logarithmic:
            return math.exp(np.interp(speed, [middle[0], top[0]], np.log([middle[1], top[1]])))
        return np.interp(speed, [low[0], middle[0], top[0]], [low[1], middle[1], top[1]])

    center = np.array([1.0, 0.0, 1.15, 0.5, 1.3, 0.9, 1.22])
    errors = np.array([0.0, 0.0, 0.02, 0.02, 0.01, 0.03, 0.008])
    step = 1e-6
    slopes = [(at(center + step * unit) - at(center - step * unit)) / (2 * step) for unit in np.eye(7)]
    expected = math.sqrt(sum((slope * error) ** 2 for slope, error in zip(slopes, errors, strict=True)))
    found = interpolate(POINTS, Estimate(1.22, 0.008), logarithmic)
    assert found.standard_error == pytest.approx(expected, rel=1e-6)


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
    points = [Point(Estimate(1.0, inf), Estimate(0.0, 0.1)), Point(Estimate(2.0), Estimate(0.0, inf))]
    assert interpolate(points, Estimate(1.0)) == (0.0, pytest.approx(0.1), None)
    assert interpolate(points, Estimate(1.5)).standard_error == inf


def test_rank_correlation_of_two_points_says_nothing():
    assert rank_correlation([1, 2], [1, 2]) is None


def value_of(folder, target, solution, model, task, metric):
    if task == "heldout":
        frame = read_table(folder / "targets" / target / solution / "evaluation.parquet", EVALUATION)
    else:
        frame = read_table(folder / "speeds" / "torch.parquet", SPEEDS)
        frame = frame[(frame["target"] == target) & (frame["solution"] == solution)]
    return frame.set_index(["model", "task", "metric"])["value"][model, task, metric]


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
        if speed < x[1]:
            expected = np.interp(speed, x[:2], y[:2])
            assert comparison.difference.value == pytest.approx(own - expected)
        else:
            expected = math.exp(np.interp(speed, x[1:], np.log(y[1:])))
            assert comparison.difference.value == pytest.approx(math.log(own / expected))
        assert comparison.baseline.value == pytest.approx(expected)


def write_pair(folder, child, baseline):
    """Write one target's child and baseline, each (speed-up over the packed parent, KL with an error of 2 %)."""
    write_parent(folder)
    for solution, (speed, kl) in (("0", child), ("layers-dropped", baseline)):
        write_child(folder / "targets" / "fast" / solution, {"child": (kl, 4.0)}, speed * PACKED)
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
        if kl < losses[1]:
            expected = np.interp(speed / PACKED, speeds[:2], losses[:2]), np.interp(kl, losses[:2], speeds[:2])
        else:
            logs = np.log(losses[1:])
            expected = math.exp(np.interp(speed / PACKED, speeds[1:], logs)), np.interp(math.log(kl), logs, speeds[1:])
        if solution == "uniform-bf16":  # faster than the slowest child, with a KL between its and the parent's
            expected = math.exp(np.interp(speed / PACKED, speeds[1:], np.log(losses[1:]))), expected[1]
        assert rivalry.at_speed.children.value == pytest.approx(expected[0])
        assert rivalry.at_kl.children.value == pytest.approx(expected[1])
        assert rivalry.at_speed.nearest is rivalry.at_kl.nearest is None
        lower, faster = kl > rivalry.at_speed.children.value, speed / PACKED < rivalry.at_kl.children.value
        assert rivalry.at_speed.verdict == ("child" if lower else "baseline")
        assert rivalry.at_kl.verdict == ("child" if faster else "baseline")


def rivalry_of(folder, child, rival):
    """Return the comparison of a rival with one target's child, each (speed-up over the packed parent, KL)."""
    write_parent(folder)
    for solution, (speed, kl) in (("0", child), ("uniform-int8", rival)):
        write_child(folder / "targets" / "fast" / solution, {"child": (kl, 4.0)}, speed * PACKED)
    (found,) = beside_uniform(load_results(folder), "child")
    return found


@pytest.mark.parametrize(
    ("rival", "at_speed", "at_kl"),
    [
        ((1.25, 0.8), "child", "child"),  # the children, on a line from KL 0: 0.5 at 1.25, and 1.4 at 0.8
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
    path = folder / "speeds" / "torch.parquet"
    frame = read_table(path, SPEEDS)
    stock = (frame["model"] != "packed parent") & (frame["metric"] != "packed_speedup")
    write_table(frame[stock].to_dict("records"), SPEEDS, path)
    results = load_results(folder)
    assert (load_results(complete).best_parent, results.best_parent) == (PACKED_KEY, PARENT_KEY)
    for comparison in compare(results, "kl", "finetuned"):
        assert comparison.speed.value == value_of(folder, comparison.key.target, "0", "child", "chat", "speedup")


def test_a_faster_and_closer_child_wins_without_interpolation(tmp_path):
    dominated, beside = (
        rivalry_of(tmp_path / "a", (1.5, 1.0), (1.4, 1.2)),
        rivalry_of(tmp_path / "b", (1.5, 1.0), (1.25, 0.8)),
    )
    assert dominated.better == Key("fast", "0", "child")
    assert (dominated.at_speed.verdict, dominated.at_kl.verdict) == ("child", "child")
    assert beside.better is None
    assert rivalry_of(tmp_path / "c", (1.5, 1.0), (1.495, 1.2)).better is None, "speeds within their errors"


@pytest.mark.parametrize(
    ("rival", "predicted", "wins"),
    [((1.495, 1.2), 1.4, True), ((1.495, 1.2), 1.6, False), ((1.495, 0.9), 1.4, False), ((1.6, 1.2), 1.4, False)],
)
def test_a_child_as_fast_and_closer_needs_a_prediction(tmp_path, monkeypatch, rival, predicted, wins):
    speeds = {"0": 1.5, "uniform-int8": predicted}
    monkeypatch.setattr(
        "tangram.report.comparison.predicted_speedup", lambda results, target, solution: speeds.get(solution)
    )
    found = rivalry_of(tmp_path, (1.5, 1.0), rival)
    assert found.better is None
    assert found.as_fast == (Key("fast", "0", "child") if wins else None)


def test_kls_on_a_steep_frontier_are_compared_by_their_ratio(tmp_path):
    """A rival between a child of KL 1e-4 and one of 0.4 is far from the straight line between them."""
    folder = tmp_path / "run"
    write_parent(folder)
    for target, (speed, kl) in {"mild": (1.2, 1e-4), "strong": (1.7, 0.4)}.items():
        write_child(folder / "targets" / target / "0", {"child": (kl, 4.0)}, speed * PACKED)
    write_child(folder / "targets" / "mild" / "uniform-int8", {"child": (0.02, 4.0)}, 1.35 * PACKED)
    (found,) = beside_uniform(load_results(folder), "child")
    assert found.at_speed.children.value == pytest.approx(1e-4 * (0.4 / 1e-4) ** 0.3)
    assert (found.at_speed.verdict, found.at_kl.verdict) == ("child", "child")


def test_kls_of_the_same_sequences_are_compared_in_pairs(complete, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "run")
    paired = {c.key: c for c in compare(load_results(folder), "kl", "child")}
    for path in folder.glob("targets/*/*/sequences.parquet"):
        path.unlink()
    for comparison in compare(load_results(folder), "kl", "child"):
        other = paired[comparison.key]
        assert comparison.difference.value == pytest.approx(other.difference.value)
        assert other.difference.standard_error < comparison.difference.standard_error


def test_quality_kept_has_the_error_of_the_paired_difference(complete):
    results = load_results(complete)
    child, rival = Key(PRIMARY, "0", "child"), Key(PRIMARY, "uniform-int8", "child")
    parent = np.mean([accuracy - CHANCE for _, accuracy in TASKS.values()]) / (1 - CHANCE)
    kept = quality_kept(results, child)
    assert kept.value == pytest.approx((parent - 0.05 / 0.75) / parent)

    def error(n, accuracy):  # the child fails at 5 % of the questions, at which the parent is right
        right, lost = (accuracy - CHANCE) / 0.75, (accuracy - 0.05 - CHANCE) / 0.75
        scores = np.repeat(
            [1 - CHANCE, 1 - CHANCE, -CHANCE], [round(n * s) for s in (accuracy - 0.05, 0.05, 1 - accuracy)]
        )
        others = np.where(np.arange(n) < round(n * (accuracy - 0.05)), 1 - CHANCE, -CHANCE)
        means = np.array([lost, right])
        covariance = np.cov(others / 0.75, scores / 0.75) / n
        assert means == pytest.approx([others.mean() / 0.75, scores.mean() / 0.75])
        return covariance

    covariance = sum(error(n, accuracy) for n, accuracy in TASKS.values()) / len(TASKS) ** 2
    slopes = np.array([1, -kept.value]) / parent  # of child / parent
    assert kept.standard_error == pytest.approx(math.sqrt(slopes @ covariance @ slopes), rel=1e-6)
    assert quality_kept(results, PARENT_KEY).value == 1
    assert quality_kept(results, Key("speed-1.4", "0", "child")) is None
    difference = quality_difference(results, child, rival)
    assert difference.value == pytest.approx(kept.value - quality_kept(results, rival).value)
    assert difference.value == pytest.approx(0.02 / 0.75 / parent)
    assert difference.standard_error < kept.standard_error, "they fail at the same questions"
    assert quality_kept(results, Key(PRIMARY, "uniform-bf16", "child")) == (1.0, 0.0, 700)
