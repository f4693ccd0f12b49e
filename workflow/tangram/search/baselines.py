"""Plain alternatives to the mixed-integer program, over the same problem: what its answer is compared with.

Puzzle (arXiv 2411.19146), tables 12 to 15. All but `drop_whole_layers` keep the target's limits, so that sums of scores
compare at equal speed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.blocks.base import NO_OP, PARENT
from tangram.config import Search
from tangram.errors import TangramError
from tangram.search.mip import architecture_of, optimise, solve
from tangram.search.problem import TOLERANCE, Batches, Problem

DROPPED = LayerChoice(NO_OP, NO_OP)


def drop_whole_layers(problem: Problem) -> tuple[Architecture, Batches, tuple[int, ...]]:
    """Drop the layers whose attention and FFN no-ops have the smallest sums of scores; keep at least one layer.

    With throughput constraints, as many layers as leave the predicted throughput at or below every one of them: the
    baseline is never faster than the target, to its favour. Without, as few as satisfy all constraints.

    Returns:
        The architecture, batch sizes (of largest throughput), and the layers dropped, in order of layers.

    Raises:
        TangramError: a layer has no no-op scores, or no number of layers satisfies the constraints.
    """
    layers = range(len(problem.candidates))
    for kind in ("attention", "ffn"):
        for layer in layers:
            if not any(getattr(candidate.choice, kind) == NO_OP for candidate in problem.candidates[layer]):
                raise TangramError(
                    f"layers cannot be dropped: scores hold no '{NO_OP}' of {kind} for layer {layer}; add it to "
                    f"library.{kind}, or set the target's compare_layers_dropped: false"
                )
    order = sorted(layers, key=lambda layer: (problem.candidate(layer, DROPPED).score, layer))
    ladder = []  # architectures by number of layers dropped
    for count in layers:
        dropped = tuple(sorted(order[:count]))
        ladder.append((tuple(DROPPED if layer in dropped else LayerChoice() for layer in layers), dropped))
    limits = [constraint for constraint in problem.target.constraints if constraint.quantity == "throughput"]
    if limits:

        def too_fast(architecture: Architecture) -> bool:
            batches = _best_batches(problem, architecture)
            return any(problem.slack(constraint, architecture, batches) > TOLERANCE for constraint in limits)

        slow = [entry for entry in ladder if not too_fast(entry[0])] or ladder[:1]
        architecture, dropped = slow[-1]
        return architecture, _best_batches(problem, architecture), dropped
    for architecture, dropped in ladder:
        for batches in problem.batch_grid():
            if problem.feasible(architecture, batches):
                return architecture, batches, dropped
    raise TangramError("no number of dropped layers keeps the target's constraints; loosen them")


def _best_batches(problem: Problem, architecture: Architecture) -> Batches:
    scenarios = problem.constrained_scenarios()
    return {
        name: problem.best_batch(architecture, name) or min(problem.costs.scenarios[name].batch_sizes)
        for name in scenarios
    }


def greedy(problem: Problem, batches: Batches) -> Architecture:
    """Return Puzzle's greedy choice (appendix F.2.2), which may miss the limits by what the last layers overdraw.

    Budgets are split equally over the layers; layers are served in ascending order of their candidates' mean score;
    each takes its best candidate within its budget and hands on what is left.
    """
    resources, layers = problem.resources(batches), len(problem.candidates)
    means = [problem.scores[problem.layer_of == layer].mean() for layer in range(layers)]
    spare = np.zeros(len(resources.budget))
    chosen: dict[int, LayerChoice] = {}
    for layer in sorted(range(layers), key=lambda layer: (means[layer], layer)):
        usage = resources.usage[:, problem.layer_of == layer]  # (constraints, candidates of this layer)
        available = resources.budget / layers + spare
        excess = np.maximum(usage - available[:, None], 0).sum(0)
        excess[excess <= TOLERANCE] = 0
        scores = problem.scores[problem.layer_of == layer]
        best = int(np.lexsort((scores, excess))[0])
        spare = available - usage[:, best]
        chosen[layer] = problem.candidates[layer][best].choice
    return tuple(chosen[layer] for layer in range(layers))


def uniform(problem: Problem, batches: Batches) -> Architecture:
    """Return the best architecture that keeps the limits with the same pair in every layer.

    Raises:
        TangramError: there is none.
    """
    layers = len(problem.candidates)
    shared = set.intersection(*({candidate.choice for candidate in layer} for layer in problem.candidates))
    same = [(candidate.choice,) * layers for candidate in problem.candidates[0] if candidate.choice in shared]
    feasible = [architecture for architecture in same if problem.feasible(architecture, batches)]
    if not feasible:
        raise TangramError("no pair of variants keeps the target's limits in every layer; loosen them")
    return min(feasible, key=problem.objective)


def random_choice(problem: Problem, batches: Batches, seed: int) -> Architecture:
    """Replace random layers of the parent by random candidates that bring it closer to the limits, until it keeps them.

    Raises:
        TangramError: it did not in 1,000 draws per layer.
    """
    generator = np.random.default_rng(seed)
    resources, layers = problem.resources(batches), len(problem.candidates)
    starts = np.searchsorted(problem.layer_of, np.arange(layers))
    chosen = starts.copy()  # the parent is every layer's first candidate

    def excess(positions: np.ndarray) -> float:
        return float(np.maximum(resources.usage[:, positions].sum(1) - resources.budget - TOLERANCE, 0).sum())

    for _ in range(1000 * layers):
        if excess(chosen) == 0:
            return tuple(
                problem.candidates[layer][position - starts[layer]].choice for layer, position in enumerate(chosen)
            )
        layer = int(generator.integers(layers))
        trial = chosen.copy()
        trial[layer] = starts[layer] + generator.integers(len(problem.candidates[layer]))
        if excess(trial) < excess(chosen):
            chosen = trial
    raise TangramError("random choices do not reach the target's limits; loosen them")


def max_parameters(problem: Problem, batches: Batches, search: Search) -> Architecture:
    """Return the architecture with the most parameters, to 1e-3, that keeps the limits (Puzzle, table 14): no scores.

    Raises:
        TangramError: no architecture keeps them.
    """
    sizes = np.array(
        [
            sum(problem.costs.sizes(layer, kind, getattr(candidate.choice, kind))[0] for kind in ("attention", "ffn"))
            for layer, candidates in enumerate(problem.candidates)
            for candidate in candidates
        ]
    )
    # Layers that cost the same make proving an optimum slow, and this baseline needs no proof.
    outcome = optimise(problem, -sizes / sizes.max(), problem.resources(batches), search, relative_gap=1e-3)
    if outcome is None:
        raise TangramError("no architecture keeps the target's limits at these batch sizes; loosen them")
    return architecture_of(problem, outcome.values)


def no_op_only(problem: Problem, search: Search) -> Architecture:
    """Return the best architecture of parent's subblocks and no-ops (Puzzle, table 12): no trained library."""
    allowed = {PARENT, NO_OP}
    candidates = tuple(
        tuple(c for c in layer if {c.choice.attention, c.choice.ffn} <= allowed) for layer in problem.candidates
    )
    target = problem.target.model_copy(update={"solutions": 1})
    return solve(replace(problem, candidates=candidates, target=target), search)[0].architecture
