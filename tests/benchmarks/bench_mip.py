"""How fast the program solves at the size of a 70B model: 80 layers of 54 pairs, two constraints, synthetic library.

Run: ``python tests/benchmarks/bench_mip.py``. The naive alternative is `scipy.optimize.milp` (HiGHS, too) on the same
matrices in the same run; it shows what Pyomo, the LP bounds and the re-check cost on top of HiGHS itself.
"""

import sys
import time
from pathlib import Path

import numpy as np

from tangram.config import Search
from tangram.search.problem import Problem
from tangram.search.solve import solve

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "search"))
from synthetic_library import library

ATTENTION = {"gqa-4": 0.85, "gqa-2": 0.75, "gqa-1": 0.7, "linear": 0.3, "no-op": 0.0}
FFN = {"width-0.87": 0.87, "width-0.75": 0.76, "width-0.5": 0.49, "width-0.25": 0.28}
FFN |= {"width-0.2": 0.25, "width-0.1": 0.18, "linear": 0.15, "no-op": 0.0}


def scipy_milp(problem: Problem) -> float:
    """Return the optimum by one plain call, at the first batch size."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    resources = problem.resources(problem.batch_grid()[0])
    groups, columns = len(problem.options), len(problem.scores)
    choices = np.zeros((groups, columns))
    choices[problem.group_of, np.arange(columns)] = 1
    constraints = [LinearConstraint(choices, 1, 1), LinearConstraint(resources.usage, -np.inf, resources.budget)]
    options = {"mip_rel_gap": 0.0}
    return milp(problem.scores, constraints=constraints, integrality=1, bounds=Bounds(0, 1), options=options).fun


class Clock:
    """Wall and processor seconds of a block; on a quiet machine they are equal, as the solver runs in one thread."""

    def __enter__(self) -> "Clock":
        self.start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.processor = time.perf_counter() - self.start[0], time.process_time() - self.start[1]

    def __str__(self) -> str:
        return f"{self.wall:.2f} s ({self.processor:.2f} s of processor)"


def main() -> None:
    """Print seconds for one proven optimum and for ten diverse solutions, at three strengths of the limits."""
    solve(library(0, 2).problem({"constraints": [{"quantity": "parameters", "max": 0.9}]}), Search())  # imports
    for speed, memory in ((1.2, 0.85), (1.5, 0.7), (2.0, 0.5)):
        target = {
            "constraints": [
                {"quantity": "throughput", "min": speed, "scenario": "chat"},
                {"quantity": "memory", "max": memory, "scenario": "chat"},
            ]
        }
        tables = library(7, 80, ATTENTION, FFN, noise=0.0)
        with Clock() as one:
            (best,) = solve(tables.problem(target), Search())
        with Clock() as naive:
            optimum = scipy_milp(tables.problem(target))
        assert abs(best.objective - optimum) < 1e-6
        with Clock() as ten:
            solutions = solve(tables.problem({**target, "solutions": 10}), Search())
        assert len(solutions) == 10
        print(f"80 layers x 54 pairs, throughput >= {speed} x, memory <= {memory} x the parent's:")
        print(f"  proven optimum           {one}; limit 2 s")
        print(f"  scipy.optimize.milp      {naive}; ratio {one.processor / naive.processor:.2f}")
        print(f"  10 diverse solutions     {ten}; limit 10 s", flush=True)


if __name__ == "__main__":
    main()
