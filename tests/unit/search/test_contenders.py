"""Contenders on tables without a model: every chosen piece ends exact, and few others are scored."""

import pandas as pd
import pytest
from synthetic_library import PRECISIONS, library, limit

from tangram.config import Search, Target
from tangram.errors import TangramError
from tangram.search.contenders import Case, score_contenders
from tangram.search.cost_model import CostModel
from tangram.search.problem import Problem, options_of
from tangram.search.solve import solve

LAYERS, KEYS = 8, ["layer", "kind", "variant"]


def cases_of(tables, *factors, solutions=1):
    costs = CostModel(tables.costs, tables.calibration, tables.scenarios)
    targets = [{"constraints": [limit("throughput", factor)], "solutions": solutions} for factor in factors]
    return [Case(Target.model_validate(target), costs) for target in targets]


def screen(tables, noise, *factors, solutions=1):
    """Return the exact rows and the estimates of a library whose estimates are wrong by known factors."""
    rows = tables.scores.to_dict("records")
    subblocks = [row for row in rows if row["kind"] != "head"]
    estimates = [
        {**row, "metric": "screened_kl", "value": abs(row["value"]) * (1 + noise * ((7 * i) % 5 - 2))}
        for i, row in enumerate(subblocks)
    ]
    exact = {tuple(row[key] for key in KEYS): [row] for row in rows}
    asked = []

    def exactly(pieces):
        asked.extend(pieces)
        return [row for piece in pieces for row in exact[piece]]

    heads = [row for row in rows if row["kind"] == "head"]
    cases = cases_of(tables, *factors, solutions=solutions)
    found = score_contenders(estimates, heads, cases, Search(), LAYERS, exactly)
    assert len(asked) == len(set(asked))
    assert len(found) == len(asked) + len(heads)
    return found, estimates


@pytest.mark.parametrize("solutions", [1, 3])
def test_nine_tenths_of_every_solution_s_score_is_exact(solutions):
    tables = library(5, LAYERS, head=PRECISIONS, noise=0)
    found, estimates = screen(tables, 0.1, 1.2, 1.5, solutions=solutions)
    known = {tuple(row[key] for key in KEYS) for row in found}
    truth = {tuple(row[key] for key in KEYS): row["value"] for row in tables.scores.to_dict("records")}
    for case in cases_of(tables, 1.2, 1.5, solutions=solutions):
        problem = Problem(options_of(pd.DataFrame([*found, *estimates]), "kl", LAYERS), case.costs, case.target)
        for solution in solve(problem, Search()):
            chosen = {piece for piece in solution.architecture.pieces() if piece[2] != "parent"}
            exact = sum(truth[piece] for piece in chosen & known)
            assert 0.9 * solution.objective <= exact <= solution.objective + 1e-9
    assert len(known) < len(tables.scores) / (1 + (solutions == 1))


def test_right_estimates_give_the_solution_of_exact_scores():
    tables = library(6, LAYERS, head=PRECISIONS, noise=0)
    found, estimates = screen(tables, 0.0, 1.4)
    (case,) = cases_of(tables, 1.4)
    of_both = [
        solve(Problem(options_of(scores, "kl", LAYERS), case.costs, case.target), Search())[0]
        for scores in (tables.scores, pd.DataFrame([*found, *estimates]))
    ]
    assert of_both[0].architecture == of_both[1].architecture
    assert of_both[0].objective == pytest.approx(of_both[1].objective)


def test_a_target_without_a_solution_is_named():
    with pytest.raises(TangramError, match="throughput"):
        screen(library(5, LAYERS, noise=0), 0.0, 99.0)
