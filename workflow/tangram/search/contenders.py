"""Contenders: the pieces that an exact score could put into a target's solution, found by solving again and again.

Every round solves all targets with the exact scores where they are known and the estimates elsewhere, and scores the
chosen pieces exactly, until those without an exact score make up a negligible share of each solution's sum.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tangram.blocks.base import PARENT
from tangram.config import Search, Target
from tangram.search.cost_model import CostModel
from tangram.search.objective import weighted_scores
from tangram.search.problem import Problem, is_usable, options_of
from tangram.search.solve import solve

NEGLIGIBLE = 0.1  # share of a solution's sum of scores that may be estimates
Piece = tuple[int, str, str]  # layer, kind and variant
Row = dict[str, Any]  # of `tables.SCORES`
Exactly = Callable[[list[Piece]], list[Row]]


@dataclass(frozen=True)
class Case:
    """One target with the costs in its engine."""

    target: Target
    costs: CostModel

    def contenders(self, scores: pd.DataFrame, known: Collection[Piece], search: Search, num_layers: int) -> set[Piece]:
        """Return the pieces in the target's solutions that need an exact score.

        Args:
            scores: exact scores, and estimates of all pieces.
            known: the pieces with an exact score.
            search: the solver's settings.
            num_layers: decoder layers.

        Raises:
            TangramError: see `solve`.
        """
        usable = [is_usable(variant, self.target) for variant in scores["variant"]]
        problem = Problem(options_of(scores[usable], "kl", num_layers), self.costs, self.target)
        values = weighted_scores(scores, "kl").set_index(["layer", "kind", "variant"])["value"].to_dict()
        found = set[Piece]()
        for solution in solve(problem, search):
            pieces = [piece for piece in solution.architecture.pieces() if piece[2] != PARENT]
            spare = NEGLIGIBLE * sum(abs(values[piece]) for piece in pieces)
            for piece in sorted(set(pieces) - set(known), key=lambda piece: values[piece]):
                spare -= values[piece]
                if spare < 0:
                    found.add(piece)
        return found


def score_contenders(
    estimates: Sequence[Row],
    exact: Sequence[Row],
    cases: Sequence[Case],
    search: Search,
    num_layers: int,
    exactly: Exactly,
) -> list[Row]:
    """Return the rows of exact scores: those that were known, and those of all contenders.

    Args:
        estimates: a row of metric `SCREENED` for every piece without an exact score.
        exact: the rows of the known exact scores, such as the head's.
        cases: the targets.
        search: the solver's settings.
        num_layers: decoder layers.
        exactly: returns the exact rows of pieces.

    Raises:
        TangramError: a target has no solution.
    """
    rows = list(exact)
    while True:
        scores = pd.DataFrame([*rows, *estimates])
        known = {(row["layer"], row["kind"], row["variant"]) for row in rows}
        chosen = set[Piece]().union(*(case.contenders(scores, known, search, num_layers) for case in cases))
        if not chosen:
            return rows
        rows += exactly(sorted(chosen))
