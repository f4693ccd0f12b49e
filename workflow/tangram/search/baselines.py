"""Baselines for the mixed-integer program, on the same problem (Puzzle, arXiv 2411.19146, tables 12 to 15).

All satisfy the target's limits, so their sums of scores compare at equal speed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.blocks.base import NO_OP, PARENT
from tangram.config import Search
from tangram.errors import TangramError
from tangram.search.problem import TOLERANCE, Batches, Problem
from tangram.search.program import Program, minimize
from tangram.search.solve import solve


def greedy(problem: Problem, batches: Batches) -> Architecture:
    """Return Puzzle's greedy architecture (appendix F.2.2), which exceeds the limits if the last layers exceed theirs.

    Every layer gets an equal share of the budget. In ascending order of their options' mean score, the layers take
    their best option within their share; the next layer inherits the unused rest.
    """
    resources, layers = problem.resources(batches), len(problem.options)
    means = [problem.scores[problem.layer_of == layer].mean() for layer in range(layers)]
    spare = np.zeros(len(resources.budget))
    chosen: dict[int, LayerChoice] = {}
    for layer in sorted(range(layers), key=lambda layer: (means[layer], layer)):
        usage = resources.usage[:, problem.layer_of == layer]  # (constraints, options of this layer)
        available = resources.budget / layers + spare
        excess = np.maximum(usage - available[:, None], 0).sum(0)
        excess[excess <= TOLERANCE] = 0
        scores = problem.scores[problem.layer_of == layer]
        best = int(np.lexsort((scores, excess))[0])
        spare = available - usage[:, best]
        chosen[layer] = problem.options[layer][best].choice
    return tuple(chosen[layer] for layer in range(layers))


def uniform(problem: Problem, batches: Batches) -> Architecture:
    """Return the best architecture that satisfies the limits with the same pair of variants in every layer.

    Raises:
        TangramError: no such architecture exists.
    """
    layers = len(problem.options)
    shared = set.intersection(*({option.choice for option in layer} for layer in problem.options))
    same = [(option.choice,) * layers for option in problem.options[0] if option.choice in shared]
    feasible = [architecture for architecture in same if problem.feasible(architecture, batches)]
    if not feasible:
        raise TangramError("no single pair of variants for all layers satisfies the target's limits; loosen them")
    return min(feasible, key=problem.objective)


def random_choice(problem: Problem, batches: Batches, seed: int) -> Architecture:
    """Replace random layers of the parent by random options that reduce the excess, until the limits are satisfied.

    Raises:
        TangramError: 1,000 draws per layer do not satisfy them.
    """
    generator = np.random.default_rng(seed)
    resources, layers = problem.resources(batches), len(problem.options)
    starts = np.searchsorted(problem.layer_of, np.arange(layers))
    chosen = starts.copy()  # the parent is every layer's first option

    def excess(positions: np.ndarray) -> float:
        return float(np.maximum(resources.usage[:, positions].sum(1) - resources.budget - TOLERANCE, 0).sum())

    for _ in range(1000 * layers):
        if excess(chosen) == 0:
            return tuple(
                problem.options[layer][position - starts[layer]].choice for layer, position in enumerate(chosen)
            )
        layer = int(generator.integers(layers))
        trial = chosen.copy()
        trial[layer] = starts[layer] + generator.integers(len(problem.options[layer]))
        if excess(trial) < excess(chosen):
            chosen = trial
    raise TangramError("random choices do not satisfy the target's limits; loosen them")


def max_parameters(problem: Problem, batches: Batches, search: Search) -> Architecture:
    """Return the architecture with the most parameters, within 1e-3, that satisfies the limits (Puzzle, table 14).

    It ignores the scores.

    Raises:
        TangramError: no architecture satisfies them.
    """
    sizes = np.array(
        [
            sum(problem.costs.sizes(layer, kind, getattr(option.choice, kind))[0] for kind in ("attention", "ffn"))
            for layer, options in enumerate(problem.options)
            for option in options
        ]
    )
    resources = problem.resources(batches)
    program = Program(-sizes / sizes.max(), problem.layer_of, resources.usage, resources.budget)
    # Layers of equal cost make the proof of an optimum slow, and a baseline needs no proof.
    minimum = minimize(program, search.time_limit, relative_gap=1e-3)
    if minimum is None:
        raise TangramError("no architecture satisfies the target's limits at these batch sizes; loosen them")
    return problem.architecture(minimum.values)


def no_op_only(problem: Problem, search: Search) -> Architecture:
    """Return the best architecture of the parent's subblocks and no-ops (Puzzle, table 12): no trained pieces."""
    allowed = {PARENT, NO_OP}
    options = tuple(
        tuple(option for option in layer if {option.choice.attention, option.choice.ffn} <= allowed)
        for layer in problem.options
    )
    target = problem.target.model_copy(update={"solutions": 1})
    return solve(replace(problem, options=options, target=target), search)[0].architecture
