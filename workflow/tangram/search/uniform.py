"""The baselines of uniform precision: the parent with every subblock in one precision."""

from __future__ import annotations

from tangram.blocks.architecture import Architecture
from tangram.blocks.base import PARENT, Variant
from tangram.config import uniform_solution
from tangram.engines import ENGINES, head_precision
from tangram.search.problem import Problem


def uniform_precisions(problem: Problem) -> dict[str, Architecture]:
    """Return the parent in every precision of its engine that all subblocks have, by name, such as ``uniform-int8``.

    The head has that precision, too, or the one that the engine's users give it.
    """
    uniform, engine = {}, problem.target.engine
    for precision in ENGINES[engine]:
        variants = [str(Variant(PARENT, precision=each)) for each in (precision, head_precision(engine, precision))]
        architecture = problem.parent_in(*variants)
        if all(problem.has(group, choice) for group, choice in enumerate(architecture.choices)):
            uniform[uniform_solution(precision)] = architecture
    return uniform
