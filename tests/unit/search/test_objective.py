"""Objectives: weighted sums of the metrics of every piece, added up on paper."""

import pandas as pd
import pytest
from synthetic_library import library, limit, score

from tangram.config import Config, Search
from tangram.errors import TangramError
from tangram.search.objective import weighted_scores, with_estimates
from tangram.search.problem import options_of

ROWS = [
    score(0, "ffn", "linear", 0.5),
    score(0, "ffn", "linear", 0.25, "lm_loss_increase"),
    score(0, "ffn", "linear", 0.125, "cosine_distance"),
    score(0, "ffn", "no-op", 2.0),
    score(0, "ffn", "no-op", -1.0, "lm_loss_increase"),
    score(0, "ffn", "no-op", 1.0, "cosine_distance"),
]


def values(rows, objective):
    return {row.variant: row.value for row in weighted_scores(pd.DataFrame(rows), objective).itertuples()}


def test_an_objective_is_the_weighted_sum_of_metrics():
    assert values(ROWS, "kl") == {"linear": 0.5, "no-op": 2.0}
    assert values(ROWS, "cosine_distance") == {"linear": 0.125, "no-op": 1.0}
    assert values(ROWS, {"kl": 1.0, "lm_loss_increase": 0.5}) == {"linear": 0.625, "no-op": 1.5}
    assert values(ROWS, {"lm_loss_increase": 4.0, "cosine_distance": 8.0}) == {"linear": 2.0, "no-op": 4.0}
    _, option = options_of(pd.DataFrame(ROWS[:2]), {"kl": 2.0, "lm_loss_increase": 4.0}, 1)[0]
    assert (option.score, option.parts) == (2.0, (0.0, 2.0))


def test_a_piece_without_a_metric_of_the_mix_is_named():
    with pytest.raises(TangramError, match="ffn 'no-op' of layer 0 lacks a metric"):
        values(ROWS[:4], {"kl": 1.0, "lm_loss_increase": 1.0})
    with pytest.raises(TangramError, match="no metric 'cosine_distance'"):
        values(ROWS[:2], {"kl": 1.0, "cosine_distance": 1.0})


def test_an_estimate_counts_only_without_a_measurement():
    rows = [*ROWS[:1], score(0, "ffn", "linear", 9.0, "screened_kl"), score(0, "ffn", "no-op", 3.0, "screened_kl")]
    assert values(rows, "kl") == {"linear": 0.5, "no-op": 3.0}
    assert values(rows[1:], "kl") == {"linear": 9.0, "no-op": 3.0}
    table = pd.DataFrame(rows)
    assert with_estimates(table)["metric"].tolist() == ["kl", "screened_kl", "screened_kl", "kl"]
    assert with_estimates(table[:1])["value"].tolist() == [0.5]
    with pytest.raises(TangramError, match=r"no metric 'lm_loss_increase' .* only \['kl'\]"):
        values(rows, "lm_loss_increase")


def test_equal_weights_of_one_metric_change_no_solution():
    tables = library(3, 4)
    one, half = (options_of(tables.scores, objective, 4) for objective in ("kl", {"kl": 0.5}))
    assert [o.choice for group in one for o in group] == [o.choice for group in half for o in group]
    assert [o.score for group in one for o in group] == [2 * o.score for group in half for o in group]


@pytest.mark.parametrize("wrong", ["agreement", {}, {"kl": 0}, {"kl": -1.0}, {"agreement": 1.0}, {"kl": True}, None])
def test_wrong_objectives_are_refused(wrong):
    with pytest.raises(ValueError, match=r"objective"):
        Search.model_validate({"objective": wrong})


def test_a_target_s_objective_overrides_that_of_the_search():
    from tangram.config import Target

    target = Target.model_validate({"constraints": [limit("parameters", 0.5, None)], "objective": {"kl": 2}})
    assert target.objective == {"kl": 2.0}
    assert Config.model_fields["search"].default.objective == "kl"
