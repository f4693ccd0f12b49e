import math

import numpy as np
import pytest
from synthetic_run import TASKS_OF, answers, sequences

from tangram.report.estimates import PARENT_KEY, Estimate, Key
from tangram.report.loading import load_results
from tangram.report.samples import (
    by_model,
    changed_answers,
    difference_on_tasks,
    mean_of,
    normalized,
    propagate,
    share_of_parent,
    task_rows,
)
from tangram.tables import EVALUATION, SAMPLES, write_table

CHILD = Key("fast", "0", "child")


def outcomes(key, task, acc, choices):
    values = {"acc": acc, "acc_norm": acc, "chance": [1 / count for count in choices]}
    return {(key, task, metric): np.array(v) for metric, v in values.items()}


def test_differences_are_paired_question_by_question(tmp_path):
    samples = {
        **outcomes(PARENT_KEY, "a", [1.0, 0.0, 1.0, 1.0], [2, 2, 4, 4]),
        **outcomes(PARENT_KEY, "b", [1.0, 1.0, 0.0], [2, 2, 2]),
        **outcomes(CHILD, "a", [1.0, 0.0, 0.0, 1.0], [2, 2, 4, 4]),
        **outcomes(CHILD, "b", [1.0, 0.0, 1.0], [2, 2, 2]),
    }
    rows = task_rows(samples)
    write_table(rows, EVALUATION, tmp_path / "tasks.parquet")
    found = {(r["model"], r["task"], r["metric"]): (r["value"], r["standard_error"], r["n"]) for r in rows}
    assert len(found) == len(rows)
    # the standard error of a mean of zeros and ones is sqrt(p (1 - p) / (n - 1))
    assert found["parent", "a", "acc"] == (0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 3)), 4)
    assert found["parent", "a", "chance"] == (pytest.approx(0.375), None, 4)
    assert found["child", "a", "acc_difference"] == (-0.25, pytest.approx(np.std([0, 0, -1, 0], ddof=1) / 2), 4)
    error = np.std([0, -1, 1], ddof=1) / math.sqrt(3)
    assert found["child", "b", "acc_difference"] == (pytest.approx(0), pytest.approx(error), 3)
    assert ("parent", "a", "acc_difference") not in found
    above = [(0.75 - 0.375) / 0.625, (2 / 3 - 0.5) / 0.5]
    errors = [math.sqrt(0.75 * 0.25 / 3) / 0.625, math.sqrt(2 / 3 / 3 / 2) / 0.5]
    expected = (pytest.approx(np.mean(above), rel=1e-5), pytest.approx(math.hypot(*errors) / 2, rel=1e-5), 7)
    assert found["parent", "mean", "acc_above_chance"] == expected
    difference = found["child", "mean", "acc_above_chance_difference"]
    assert difference[0] == pytest.approx(-0.25 / 0.625 / 2)
    assert difference[1] == pytest.approx(math.hypot(0.25 / 0.625, error / 0.5) / 2)
    assert changed_answers(samples, CHILD) == 3
    assert difference_on_tasks(samples, PARENT_KEY, CHILD).value == pytest.approx(-difference[0])


def test_models_with_other_questions_are_not_compared():
    samples = {**outcomes(PARENT_KEY, "a", [1.0, 0.0], [2, 2]), **outcomes(CHILD, "a", [1.0], [2])}
    assert difference_on_tasks(samples, CHILD, PARENT_KEY) is None
    assert changed_answers(samples, CHILD) is None
    assert {row["metric"] for row in task_rows(samples) if row["model"] == "child"} == {
        *("acc", "acc_norm", "chance", "acc_above_chance")
    }


def test_shares_have_the_error_of_a_paired_bootstrap():
    """Over the questions within tasks; generation has chance 0, and its metric is named by its chance."""
    rng = np.random.default_rng(0)
    sizes, samples = {"choose": 200, "write": 120}, {}
    for task, n in sizes.items():
        parent = (rng.random(n) < 0.7).astype(float)
        child = np.where(rng.random(n) < 0.1, 1 - parent, parent)
        for key, values in ((PARENT_KEY, parent), (CHILD, child)):
            metric, chance, level = ("acc", "chance", 0.25) if task == "choose" else ("em", "chance:em", 0.0)
            samples |= {(key, task, metric): values, (key, task, chance): np.full(n, level)}
    kept = share_of_parent(samples, normalized(samples, CHILD))

    def mean(key, indices):
        chosen = samples[key, "choose", "acc"][indices["choose"]].mean()
        return ((chosen - 0.25) / 0.75 + samples[key, "write", "em"][indices["write"]].mean()) / 2

    whole = {task: np.arange(n) for task, n in sizes.items()}
    assert kept.value == pytest.approx(mean(CHILD, whole) / mean(PARENT_KEY, whole))
    assert kept.n == 320
    shares = []
    for _ in range(2000):
        indices = {task: rng.integers(0, n, size=n) for task, n in sizes.items()}
        shares.append(mean(CHILD, indices) / mean(PARENT_KEY, indices))
    assert kept.standard_error == pytest.approx(np.std(shares, ddof=1), rel=0.1)
    rows = {(row["task"], row["metric"]) for row in task_rows(samples) if row["model"] == "child"}
    assert {("write", "em"), ("write", "em_difference"), ("write", "chance"), ("choose", "acc_difference")} <= rows
    assert changed_answers(samples, CHILD) == sum(
        int((samples[CHILD, task, metric] != samples[PARENT_KEY, task, metric]).sum())
        for task, metric in (("choose", "acc"), ("write", "em"))
    )


def test_a_run_s_answers_are_read_in_the_order_of_questions(tmp_path):
    for name, losses in (("parent_tasks", {"parent": 0.0}), ("targets/fast/0/tasks", TASKS_OF["0"])):
        write_table(answers(losses)[::-1], SAMPLES, tmp_path / f"{name}.parquet")
    samples = load_results(tmp_path).samples
    expected = [row["value"] for row in answers(TASKS_OF["0"]) if row["task"] == "general_knowledge"]
    assert samples[CHILD, "general_knowledge", "acc"].tolist() == expected[0:300:3]
    assert changed_answers(samples, CHILD) == 0.05 * 700


def test_a_ratio_of_paired_means_has_the_delta_method_s_error():
    rng = np.random.default_rng(0)
    one = rng.lognormal(size=40)
    other = one * rng.lognormal(0, 0.1, size=40)

    def error(*samples):
        terms = [mean_of(one), mean_of(other)]
        return propagate(lambda v: math.log(v[0] / v[1]), terms, samples).standard_error

    influence = one / one.mean() - other / other.mean()
    assert error(one, other) == pytest.approx(influence.std(ddof=1) / math.sqrt(40), rel=1e-6)
    relative = [values.std(ddof=1) / values.mean() / math.sqrt(40) for values in (one, other)]
    assert error() == error(None, None) == pytest.approx(math.hypot(*relative), rel=1e-6)
    assert error(one, other) < 0.3 * error()


def test_a_term_without_a_part_may_have_an_unknown_error():
    terms = [Estimate(2.0, 0.1), Estimate(0.0, math.inf)]
    assert propagate(lambda v: v[0], terms).standard_error == pytest.approx(0.1)
    assert propagate(lambda v: v[0] + v[1], terms).standard_error == math.inf
    assert propagate(lambda v: v[0], [Estimate(2.0)]) == Estimate(2.0, 0.0)


def test_sequences_have_the_stated_mean_and_error():
    import pandas as pd

    frame = pd.DataFrame(sequences({"child": 0.5})).assign(target="fast", solution="0")
    found = mean_of(by_model(frame)[CHILD, "heldout", "kl"])
    assert (found.value, found.standard_error, found.n) == (pytest.approx(0.5), pytest.approx(0.01), 16)
