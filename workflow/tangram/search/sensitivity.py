"""Which choices of a solution another cost within its interval would change.

The time of each variant relative to the parent's piece is moved to both ends of its 95 % interval, one variant at a
time, and the program is solved again. The parent's pieces stay, because the limits follow them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tangram.blocks.architecture import Architecture, pieces_of
from tangram.blocks.base import PARENT
from tangram.config import Search
from tangram.errors import TangramError
from tangram.search.cost_model import CostModel
from tangram.search.problem import Problem
from tangram.search.solve import solve

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 1.96  # standard errors of a two-sided 95 % interval


def moved(costs: pd.DataFrame, kind: str, variant: str, errors: float) -> pd.DataFrame:
    """Return the table of costs with a variant's relative times moved by a number of their standard errors."""
    rows = (costs["kind"] == kind) & (costs["variant"] == variant)
    change = (errors * costs["ratio_error"] * costs["parent_seconds"]).where(rows, 0.0)
    return costs.assign(seconds=(costs["seconds"] + change).clip(lower=0.0))


def changes(before: Architecture, after: Architecture) -> dict[str, int]:
    """Return the number of subblocks that change from one variant to another, such as ``'ffn: no-op to linear'``."""
    pairs = zip(before.choices, after.choices, strict=True)
    swaps = Counter(
        f"{kind}: {one} to {other}"
        for old, new in pairs
        for (kind, one), (_, other) in zip(pieces_of(old), pieces_of(new), strict=True)
        if one != other
    )
    return dict(sorted(swaps.items()))


def sensitivity(
    problem: Problem, search: Search, best: Architecture, costs: pd.DataFrame, calibration: pd.DataFrame
) -> list[dict[str, Any]]:
    """Return for each variant and each end of its interval how the best solution changes.

    Args:
        problem: the target's problem.
        search: the solver's settings.
        best: the target's best solution.
        costs: rows of `tables.COSTS`, of which the problem was made.
        calibration: rows of `tables.CALIBRATION`, of which the problem was made.

    Returns:
        Records with ``kind``, ``variant``, ``end`` (``'shorter'`` or ``'longer'``), ``changes`` as `changes` says, and
        ``feasible``, which is false if no architecture satisfies the limits.
    """
    target = problem.target.model_copy(update={"solutions": 1})
    names = sorted({(str(row.kind), str(row.variant)) for row in costs.itertuples() if row.variant != PARENT})
    records = []
    for kind, variant in names:
        for end, sign in (("shorter", -1), ("longer", 1)):
            table = moved(costs, kind, variant, sign * CONFIDENCE)
            other = replace(problem, costs=CostModel(table, calibration, problem.costs.scenarios), target=target)
            record: dict[str, Any] = {"kind": kind, "variant": variant, "end": end, "feasible": True, "changes": {}}
            try:
                record["changes"] = changes(best, solve(other, search)[0].architecture)
            except TangramError:
                record["feasible"] = False
            records.append(record)
    return records
