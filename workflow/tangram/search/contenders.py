"""Contenders: the pieces that an exact score could put into a target's solution, found by solving again and again.

Every round solves all targets with the exact scores where they are known and the estimates elsewhere, and scores the
chosen pieces exactly, until every chosen piece has an exact score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tangram.blocks.base import PARENT
from tangram.config import Search, Target
from tangram.search.cost_model import CostModel
from tangram.search.problem import Problem, is_usable, options_of
from tangram.search.solve import solve

Piece = tuple[int, str, str]  # layer, kind and variant
Row = dict[str, Any]  # of `tables.SCORES`
Exactly = Callable[[list[Piece]], list[Row]]


@dataclass(frozen=True)
class Case:
    """One target with the costs in its engine."""

    target: Target
    costs: CostModel

    def chosen(self, scores: pd.DataFrame, search: Search, num_layers: int) -> set[Piece]:
        """Return the pieces in the target's solutions, other than the parent's.

        Raises:
            TangramError: see `solve`.
        """
        usable = [is_usable(variant, self.target) for variant in scores["variant"]]
        problem = Problem(options_of(scores[usable], "kl", num_layers), self.costs, self.target)
        architectures = [solution.architecture for solution in solve(problem, search)]
        return {piece for architecture in architectures for piece in architecture.pieces() if piece[2] != PARENT}


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
        chosen = set[Piece]().union(*(case.chosen(scores, search, num_layers) for case in cases))
        if chosen <= known:
            return rows
        rows += exactly(sorted(chosen - known))
