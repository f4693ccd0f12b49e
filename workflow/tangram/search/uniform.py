"""The baselines of uniform precision: the parent with every subblock and the head in one precision."""

from __future__ import annotations

from tangram.blocks.architecture import Architecture
from tangram.blocks.base import PARENT, PRECISIONS, Variant
from tangram.config import uniform_solution
from tangram.search.problem import Problem


def uniform_precisions(problem: Problem) -> dict[str, Architecture]:
    """Return the parent in every precision that all subblocks and the head have, by name, such as ``uniform-int8``."""
    uniform = {}
    for precision in PRECISIONS:
        variant = str(Variant(PARENT, precision=precision))
        architecture = problem.parent_in(variant)
        if all(problem.has(group, choice) for group, choice in enumerate(architecture.choices)):
            uniform[uniform_solution(precision)] = architecture
    return uniform
