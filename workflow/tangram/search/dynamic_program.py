"""A dynamic program over the additive score: exact but for the rounding of costs, for one constraint.

The groups (layers, then the head) are taken in order. The state is the sum of costs so far in whole units, and the
value its smallest sum of scores. Every option's cost beyond its group's cheapest option is rounded up to whole units of
1 / `UNITS` of what the limit leaves beyond those cheapest options. So no solution exceeds the limit, and the sum of
scores is at most the optimum of a limit that is tighter by one unit per group.

In llama.cpp a subblock's cost can contain a stub that the next layer's FFN replaces (`costs/llama_layers.py`); whether
one waits is then part of the state.
"""

from __future__ import annotations

import numpy as np

from tangram.blocks.architecture import Architecture
from tangram.errors import TangramError
from tangram.search.problem import TOLERANCE, Batches, Problem
from tangram.search.program import Program

UNITS = 100_000


def dynamic_program(problem: Problem, batches: Batches, units: int = UNITS) -> Architecture:
    """Return the architecture of the smallest sum of scores within the target's limit, as the rounded costs say.

    Args:
        problem: the problem, with one constraint.
        batches: batch sizes by scenario.
        units: number of units between the cheapest architecture and the limit.

    Raises:
        TangramError: the target has several constraints, or no architecture satisfies the limit.
    """
    if len(problem.target.constraints) != 1:
        raise TangramError(
            f"dynamic-program takes one constraint, and the target has {len(problem.target.constraints)}; leave it out "
            "of the target's compare"
        )
    program = Program.of(problem, problem.scores, problem.resources(batches))
    costs = _rounded_costs(program, units)
    waits, empty = _flags(program)
    states = len(costs)
    best = np.full((states, units + 1), np.inf)
    best[0, 0] = 0.0
    chosen, origin = [], []  # by group: the option that leads to a state, and whether a stub waited before it
    for group in range(program.groups):
        following = np.full_like(best, np.inf)
        option_of, state_of = np.full(best.shape, -1, dtype=np.int32), np.zeros(best.shape, dtype=np.int8)
        for option in np.flatnonzero(program.group_of == group):
            for state in range(states):
                cost = int(costs[state, option])
                if cost > units:
                    continue
                after = int(states > 1 and (waits[option] or (empty[option] and state)))
                values = best[state, : units + 1 - cost] + program.scores[option]
                better = values < following[after, cost:]
                following[after, cost:][better] = values[better]
                option_of[after, cost:][better] = option
                state_of[after, cost:][better] = state
        best = following
        chosen.append(option_of)
        origin.append(state_of)
    if not np.isfinite(best).any():
        raise TangramError("no architecture satisfies the target's limit at these batch sizes; loosen it")
    state, cost = (int(index) for index in np.unravel_index(int(best.argmin()), best.shape))
    values = np.zeros(len(program.scores))
    for option_of, state_of in zip(reversed(chosen), reversed(origin), strict=True):
        taken, before = int(option_of[state, cost]), int(state_of[state, cost])
        values[taken] = 1.0
        state, cost = before, cost - int(costs[before, taken])
    return problem.architecture(values)


def _flags(program: Program) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each option ends with a stub that waits, and whether it is empty; all False without stubs."""
    if program.stubs is None:
        nothing = np.zeros(len(program.scores), dtype=bool)
        return nothing, nothing
    return program.stubs.waits, program.stubs.empty


def _rounded_costs(program: Program, units: int) -> np.ndarray:
    """Return every option's cost in units beyond its group's cheapest, ``(states, options)``.

    The states are 1, or 2 with stubs: none waits before the option, or one does. A cost above the limit is
    ``units + 1``.

    Raises:
        TangramError: the cheapest options exceed the limit.
    """
    usage = program.usage[:1]
    if program.stubs is not None:
        usage = np.concatenate([usage, usage - program.stubs.usage[0] * program.stubs.ends])
    starts = np.searchsorted(program.group_of, np.arange(program.groups))
    cheapest = np.minimum.reduceat(usage.min(0), starts)
    left = program.budget[0] - cheapest.sum()
    if left < -TOLERANCE:
        raise TangramError("no architecture satisfies the target's limit at these batch sizes; loosen it")
    unit = max(left, TOLERANCE) / units
    beyond = (usage - cheapest[program.group_of]) / unit
    return np.minimum(np.ceil(beyond - 1e-6), units + 1).astype(np.int64)
