"""Baselines for the mixed-integer program, on the same problem (Puzzle, arXiv 2411.19146, tables 12 to 15).

All satisfy the target's limits, so their sums of scores compare at equal speed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tangram.blocks.architecture import Architecture, Choice, pieces_of
from tangram.blocks.base import NO_OP, PARENT
from tangram.config import Search
from tangram.errors import TangramError
from tangram.search.problem import TOLERANCE, Batches, Problem
from tangram.search.program import Program, minimize
from tangram.search.solve import solve


def greedy(problem: Problem, batches: Batches) -> Architecture:
    """Return Puzzle's greedy architecture (appendix F.2.2), which exceeds the limits if the last layers exceed theirs.

    The head is the parent's. Every layer gets an equal share of the remaining budget. In ascending order of their
    options' mean score, the layers take their best option within their share; the next layer inherits the unused rest.
    """
    resources, layers = problem.resources(batches), problem.num_layers
    budget = resources.budget - resources.usage[:, problem.position(layers, PARENT)]
    means = [problem.scores[problem.group_of == layer].mean() for layer in range(layers)]
    spare = np.zeros(len(resources.budget))
    chosen: dict[int, Choice] = {}
    for layer in sorted(range(layers), key=lambda layer: (means[layer], layer)):
        usage = resources.usage[:, problem.group_of == layer]  # (constraints, options of this layer)
        available = budget / layers + spare
        excess = np.maximum(usage - available[:, None], 0).sum(0)
        excess[excess <= TOLERANCE] = 0
        scores = problem.scores[problem.group_of == layer]
        best = int(np.lexsort((scores, excess))[0])
        spare = available - usage[:, best]
        chosen[layer] = problem.options[layer][best].choice
    return Architecture.of([*(chosen[layer] for layer in range(layers)), PARENT])


def uniform(problem: Problem, batches: Batches) -> Architecture:
    """Return the best architecture that satisfies the limits with the same pair of variants in every layer.

    The head is the parent's.

    Raises:
        TangramError: no such architecture exists.
    """
    layers = problem.options[:-1]
    shared = set.intersection(*({option.choice for option in layer} for layer in layers))
    same = [
        Architecture.of([*[option.choice] * len(layers), PARENT]) for option in layers[0] if option.choice in shared
    ]
    feasible = [architecture for architecture in same if problem.feasible(architecture, batches)]
    if not feasible:
        raise TangramError("no single pair of variants for all layers satisfies the target's limits; loosen them")
    return min(feasible, key=problem.objective)


def random_choice(problem: Problem, batches: Batches, seed: int) -> Architecture:
    """Replace random groups of the parent by random options that reduce the excess, until the limits are satisfied.

    Raises:
        TangramError: 1,000 draws per group do not satisfy them.
    """
    generator = np.random.default_rng(seed)
    resources, groups = problem.resources(batches), len(problem.options)
    starts = np.searchsorted(problem.group_of, np.arange(groups))
    chosen = starts.copy()  # the parent is every group's first option

    def excess(positions: np.ndarray) -> float:
        return float(np.maximum(resources.usage[:, positions].sum(1) - resources.budget - TOLERANCE, 0).sum())

    for _ in range(1000 * groups):
        if excess(chosen) == 0:
            return Architecture.of(
                problem.options[group][position - starts[group]].choice for group, position in enumerate(chosen)
            )
        group = int(generator.integers(groups))
        trial = chosen.copy()
        trial[group] = starts[group] + generator.integers(len(problem.options[group]))
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
            sum(problem.costs.sizes(problem.layer(group), *piece).parameters for piece in pieces_of(option.choice))
            for group, options in enumerate(problem.options)
            for option in options
        ]
    )
    resources = problem.resources(batches)
    program = Program(-sizes / sizes.max(), problem.group_of, resources.usage, resources.budget)
    # Layers of equal cost make the proof of an optimum slow, and a baseline needs no proof.
    minimum = minimize(program, search.time_limit, relative_gap=1e-3)
    if minimum is None:
        raise TangramError("no architecture satisfies the target's limits at these batch sizes; loosen them")
    return problem.architecture(minimum.values)


def no_op_only(problem: Problem, search: Search) -> Architecture:
    """Return the best architecture of the parent's subblocks and no-ops (Puzzle, table 12): no trained pieces."""
    allowed = {PARENT, NO_OP}
    options = tuple(
        tuple(option for option in group if {variant for _, variant in pieces_of(option.choice)} <= allowed)
        for group in problem.options
    )
    target = problem.target.model_copy(update={"solutions": 1})
    return solve(replace(problem, options=options, target=target), search)[0].architecture
