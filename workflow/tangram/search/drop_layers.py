"""The baseline of the search: drop whole layers (Puzzle, arXiv 2411.19146, table 12), in the best uniform precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.blocks.base import KINDS, NO_OP, PAIR
from tangram.errors import TangramError
from tangram.search.objective import weighted_scores
from tangram.search.problem import TOLERANCE, Batches, Problem
from tangram.search.uniform import uniform_precisions

if TYPE_CHECKING:
    import pandas as pd

DROPPED = LayerChoice(NO_OP, NO_OP)
Dropped = tuple[Architecture, Batches, tuple[int, ...]]  # with the batch sizes, and the dropped layers in order


def joint_importance(scores: pd.DataFrame, objective: str | Mapping[str, float], num_layers: int) -> tuple[float, ...]:
    """Return every layer's importance: the score of the parent without its attention and FFN together.

    Args:
        scores: rows of `tables.SCORES` of kind `block` that `score_layers` wrote.
        objective: the metric that counts, or weights by metric.
        num_layers: decoder layers.

    Raises:
        TangramError: a metric or a layer is missing, or appears twice.
    """
    rows = weighted_scores(scores, objective)
    rows = rows[(rows["kind"] == PAIR) & (rows["variant"] == f"{NO_OP}+{NO_OP}")].sort_values("layer")
    if rows["layer"].tolist() != list(range(num_layers)):
        raise TangramError(
            f"scores of dropped layers are not those of layers 0 to {num_layers - 1}, each once; delete the tables in "
            "scores/layers and run again"
        )
    return tuple(map(float, rows["value"]))


def drop_whole_layers(problem: Problem, importance: Sequence[float] | None = None) -> Dropped:
    """Drop the least important layers; keep at least one layer.

    By default a layer's importance is the sum of its attention and FFN no-ops' scores.

    The layers that stay, and the head, are the parent's in one precision: of all precisions, the one whose architecture
    has the smallest sum of scores.

    With throughput constraints, it drops as many layers as possible without exceeding any of them in predicted
    throughput: the baseline is never faster than the target, which favors its quality, unless the precision alone is.
    Without, it drops as few layers as satisfy all constraints.

    Args:
        problem: the target's problem.
        importance: another importance of every layer, such as its `joint_importance` or its block influence.

    Returns:
        The architecture, batch sizes (of largest throughput), and the dropped layers in ascending order.

    Raises:
        TangramError: a layer has no no-op scores, or no number of layers satisfies the constraints.
    """
    for kind in KINDS:
        for layer in range(problem.num_layers):
            if not any(getattr(option.choice, kind) == NO_OP for option in problem.options[layer]):
                raise TangramError(
                    f"layers cannot be dropped: scores hold no '{NO_OP}' of {kind} for layer {layer}; add it to "
                    f"library.{kind}, or set the target's compare_layers_dropped: false"
                )
    if importance is None:
        importance = [problem.option(layer, DROPPED).score for layer in range(problem.num_layers)]
    bases = [problem.parent, *uniform_precisions(problem).values()]
    baselines = [baseline for base in bases if (baseline := _drop(problem, base, importance)) is not None]
    if not baselines:
        raise TangramError("no number of dropped layers satisfies the target's constraints; loosen them")
    return min(baselines, key=lambda baseline: problem.objective(baseline[0]))


def _drop(problem: Problem, base: Architecture, importance: Sequence[float]) -> Dropped | None:
    """Drop layers of one architecture; None if no number of them satisfies the constraints."""
    layers = range(problem.num_layers)
    order = sorted(layers, key=lambda layer: (importance[layer], layer))
    candidates = []  # by number of dropped layers
    for count in layers:
        dropped = tuple(sorted(order[:count]))
        choices = tuple(DROPPED if layer in dropped else base.layers[layer] for layer in layers)
        candidates.append((Architecture(choices, base.head), dropped))
    limits = [constraint for constraint in problem.target.constraints if constraint.quantity == "throughput"]
    if limits:

        def too_fast(architecture: Architecture) -> bool:
            batches = problem.usual_batches(architecture)
            return any(problem.slack(constraint, architecture, batches) > TOLERANCE for constraint in limits)

        slow = [entry for entry in candidates if not too_fast(entry[0])] or candidates[:1]
        architecture, dropped = slow[-1]
        return architecture, problem.usual_batches(architecture), dropped
    for architecture, dropped in candidates:
        for batches in problem.batch_grid():
            if problem.feasible(architecture, batches):
                return architecture, batches, dropped
    return None
