"""The score that the solver sums: one metric of the score table, or a weighted mix of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tangram.config import Search, Target
from tangram.errors import TangramError

if TYPE_CHECKING:
    import pandas as pd

SCREENED = "screened_kl"  # a second-order estimate of `kl`, of every piece if scores.method is screened
_PIECE = ["layer", "kind", "variant"]


def objective_of(target: Target, search: Search) -> str | dict[str, float]:
    """Return what a target's searches minimize: a metric, or weights by metric."""
    objective: Any = target.objective or search.objective
    return objective if isinstance(objective, str) else dict(objective)


def weights_of(objective: str | Mapping[str, float]) -> dict[str, float]:
    """Return the weight of every metric in an objective; a metric alone has weight 1."""
    return {objective: 1.0} if isinstance(objective, str) else dict(objective)


def weighted_scores(scores: pd.DataFrame, objective: str | Mapping[str, float]) -> pd.DataFrame:
    """Return one score per piece: the sum of its metrics, each times its weight.

    Pieces that screening left without `kl` have the estimate of it instead.

    Args:
        scores: rows of `tables.SCORES`.
        objective: a metric, or weights by metric.

    Returns:
        Columns ``layer``, ``kind``, ``variant`` and ``value``, by piece; a piece that is there twice has two rows.

    Raises:
        TangramError: a metric is missing, of all pieces or of some.
    """
    weights, scores = weights_of(objective), with_estimates(scores)
    rows = scores[scores["metric"].isin(list(weights))]
    for metric in weights:
        if metric not in set(rows["metric"]):
            measured = sorted({*scores["metric"]} - {SCREENED})
            raise TangramError(f"scores hold no metric '{metric}' (search.objective), only {measured}")
    copies = rows.groupby([*_PIECE, "metric"]).cumcount()  # more than one is the caller's error
    groups = [rows[name] for name in _PIECE] + [copies]
    incomplete = rows.groupby(groups)["metric"].transform("size") < len(weights)
    if incomplete.any():
        row = rows[incomplete].iloc[0]
        where = f"scores: {row['kind']} '{row['variant']}' of layer {row['layer']}"
        raise TangramError(f"{where} lacks a metric of the objective; delete the table and run again")
    weighted = rows["value"] * rows["metric"].map(weights)
    return weighted.rename("value").groupby(groups).sum(min_count=len(weights)).reset_index(_PIECE)


def with_estimates(scores: pd.DataFrame) -> pd.DataFrame:
    """Return rows of `tables.SCORES` in which the pieces without `kl` have the estimate of screening."""
    import pandas as pd

    keys = [*_PIECE, "metric"]
    known = set(scores[keys].itertuples(index=False, name=None))
    estimated = scores[scores["metric"] == SCREENED].assign(metric="kl")
    unknown = [key not in known for key in estimated[keys].itertuples(index=False, name=None)]
    return pd.concat([scores, estimated[unknown]], ignore_index=True) if any(unknown) else scores
