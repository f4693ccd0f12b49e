"""The baseline of the search: drop whole layers (Puzzle, arXiv 2411.19146, table 12)."""

from __future__ import annotations

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.blocks.base import NO_OP
from tangram.errors import TangramError
from tangram.search.problem import TOLERANCE, Batches, Problem

DROPPED = LayerChoice(NO_OP, NO_OP)


def drop_whole_layers(problem: Problem) -> tuple[Architecture, Batches, tuple[int, ...]]:
    """Drop the layers whose attention and FFN no-ops have the smallest sums of scores; keep at least one layer.

    With throughput constraints, it drops as many layers as possible without exceeding any of them in predicted
    throughput: the baseline is never faster than the target, which favors its quality. Without, it drops as few layers
    as satisfy all constraints.

    Returns:
        The architecture, batch sizes (of largest throughput), and the dropped layers in ascending order.

    Raises:
        TangramError: a layer has no no-op scores, or no number of layers satisfies the constraints.
    """
    layers = range(len(problem.options))
    for kind in ("attention", "ffn"):
        for layer in layers:
            if not any(getattr(option.choice, kind) == NO_OP for option in problem.options[layer]):
                raise TangramError(
                    f"layers cannot be dropped: scores hold no '{NO_OP}' of {kind} for layer {layer}; add it to "
                    f"library.{kind}, or set the target's compare_layers_dropped: false"
                )
    order = sorted(layers, key=lambda layer: (problem.option(layer, DROPPED).score, layer))
    candidates = []  # by number of dropped layers
    for count in layers:
        dropped = tuple(sorted(order[:count]))
        candidates.append((tuple(DROPPED if layer in dropped else LayerChoice() for layer in layers), dropped))
    limits = [constraint for constraint in problem.target.constraints if constraint.quantity == "throughput"]
    if limits:

        def too_fast(architecture: Architecture) -> bool:
            batches = _best_batches(problem, architecture)
            return any(problem.slack(constraint, architecture, batches) > TOLERANCE for constraint in limits)

        slow = [entry for entry in candidates if not too_fast(entry[0])] or candidates[:1]
        architecture, dropped = slow[-1]
        return architecture, _best_batches(problem, architecture), dropped
    for architecture, dropped in candidates:
        for batches in problem.batch_grid():
            if problem.feasible(architecture, batches):
                return architecture, batches, dropped
    raise TangramError("no number of dropped layers satisfies the target's constraints; loosen them")


def _best_batches(problem: Problem, architecture: Architecture) -> Batches:
    return {name: problem.usual_batch(architecture, name) for name in problem.constrained_scenarios()}
