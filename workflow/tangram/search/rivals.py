"""Other searches on the solver's problem, by the names under which a target's `compare` asks for them.

Each returns an architecture within the target's limits, and batch sizes at which it satisfies them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tangram.blocks.architecture import Architecture
from tangram.config import RANDOM_WEIGHTS, Search
from tangram.errors import TangramError
from tangram.search import baselines
from tangram.search.dynamic_program import dynamic_program
from tangram.search.problem import Batches, Problem
from tangram.search.solve import solve


@dataclass(frozen=True)
class Inputs:
    """All that a search reads: the problem, the solver's settings, and the seed of its random numbers."""

    problem: Problem
    search: Search
    seed: int


Algorithm = Callable[[Inputs, Batches], Architecture]
ALGORITHMS: dict[str, Algorithm] = {
    "greedy": lambda inputs, batches: baselines.greedy(inputs.problem, batches),
    "max-parameters": lambda inputs, batches: baselines.max_parameters(inputs.problem, batches, inputs.search),
    "no-op-only": lambda inputs, batches: baselines.no_op_only(inputs.problem, inputs.search),
    "random": lambda inputs, batches: baselines.random_choice(inputs.problem, batches, inputs.seed),
    "same-pair": lambda inputs, batches: baselines.uniform(inputs.problem, batches),
    "dynamic-program": lambda inputs, batches: dynamic_program(inputs.problem, batches),
    RANDOM_WEIGHTS: lambda inputs, batches: solve(inputs.problem, inputs.search)[0].architecture,  # see assemble_child
}


def run(name: str, problem: Problem, search: Search, seed: int) -> tuple[Architecture, Batches]:
    """Return a search's architecture, the best by its own criterion over all batch sizes, and its batch sizes.

    Args:
        name: one of `ALGORITHMS`.
        problem: the target's problem.
        search: the solver's settings.
        seed: seed of random numbers.

    Raises:
        TangramError: the search finds no architecture within the limits at any batch size.
    """
    inputs, architectures, reason = Inputs(problem, search, seed), list[Architecture](), ""
    for batches in problem.batch_grid():
        try:
            architecture = ALGORITHMS[name](inputs, batches)
        except TangramError as error:
            reason = f": {error}"
            continue
        if problem.feasible(architecture, batches):
            architectures.append(architecture)
    if not architectures:
        raise TangramError(
            f"{name} finds no architecture within the target's limits{reason}; leave {name} out of the target's "
            "compare, or loosen the limits"
        )
    best = min(architectures, key=_criterion(name, problem))
    return best, satisfied_batches(problem, best)


def _criterion(name: str, problem: Problem) -> Callable[[Architecture], float]:
    """Return what a search minimizes; random choices of all batch sizes are equally good, so the first counts."""
    if name == "max-parameters":
        return lambda architecture: (
            -float(sum(problem.costs.sizes(*piece).parameters for piece in architecture.pieces()))
        )
    return (lambda architecture: 0.0) if name == "random" else problem.objective


def satisfied_batches(problem: Problem, architecture: Architecture) -> Batches:
    """Return batch sizes at which an architecture satisfies all limits: those of largest throughput if they do.

    Raises:
        TangramError: there are none.
    """
    for batches in (problem.usual_batches(architecture), *problem.batch_grid()):
        if problem.feasible(architecture, batches):
            return batches
    raise TangramError("an architecture exceeds the target's limits at all batch sizes; loosen them")
