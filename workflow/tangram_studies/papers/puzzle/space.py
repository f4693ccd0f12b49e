"""One search space of the study: its scores, measured costs, and the solver with its baselines at any speed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd

from tangram.blocks.architecture import Architecture, Choice, pieces_of
from tangram.config import Scenario, Search, Target
from tangram.provenance import fingerprint
from tangram.search import rivals
from tangram.search.cost_model import CostModel
from tangram.search.problem import Problem, options_of
from tangram.search.solve import solve
from tangram_studies.search_fidelity import diverse

SCENARIO = "chat"
SEARCH = Search(time_limit=600, diverse_gap=0.02)  # 25 diverse solutions take seconds, and minutes with the default


@dataclass(frozen=True)
class Space:
    """A search space.

    Attributes:
        scores: score tables by the seed of their text, rows of `tables.SCORES`.
        costs: rows of `tables.COSTS`.
        calibration: rows of `tables.CALIBRATION`.
        scenario: the workload.
        layers: the parent's layers.
    """

    scores: tuple[pd.DataFrame, ...]
    costs: pd.DataFrame
    calibration: pd.DataFrame
    scenario: Scenario
    layers: int

    @cached_property
    def key(self) -> str:
        """What identifies the space in kept results."""
        tables = (*self.scores, self.costs, self.calibration)
        return fingerprint([*(table.to_json() for table in tables), self.scenario.model_dump_json()], [])

    def problem(self, speed: float, seed: int = 0, objective: Any = "kl") -> Problem:
        """Return the problem of a minimal throughput, as a multiple of the packed parent's."""
        limit = {"quantity": "throughput", "min": speed, "scenario": SCENARIO, "reference": "packed"}
        target = Target.model_validate({"constraints": [limit]})
        model = CostModel(self.costs, self.calibration, {SCENARIO: self.scenario})
        return Problem(options_of(self.scores[seed], objective, self.layers), model, target)

    def solve(self, speed: float, seed: int = 0, objective: Any = "kl") -> Architecture:
        """Return the solver's best architecture."""
        return solve(self.problem(speed, seed, objective), SEARCH)[0].architecture

    def diverse(self, speed: float, solutions: int, seed: int = 0) -> list[Architecture]:
        """Return the solver's best architectures, of which two differ in a fifth of the layers; fewer if need be."""
        return diverse(self.problem(speed, seed), SEARCH, solutions)

    def rival(self, name: str, speed: float, seed: int = 0, draw: int | None = None) -> Architecture:
        """Return another search's architecture; see `search.rivals`.

        Args:
            name: the search's name.
            speed: the limit.
            seed: the draw of score text.
            draw: seed of random choices; by default that of the text.
        """
        return rivals.run(name, self.problem(speed, seed), SEARCH, seed if draw is None else draw)[0]

    def averaged(self) -> Space:
        """Return the space whose scores are means over all draws of text."""
        keys = ["layer", "kind", "variant", "metric"]
        together: Any = pd.concat(self.scores).groupby(keys, as_index=False)["value"].mean()
        return replace(self, scores=(together,))

    def fastest(self) -> float:
        """Return the predicted speed of the fastest option of every group."""
        problem = self.problem(1.0)
        seconds = [
            min(self._seconds(problem, group, option.choice) for option in options)
            for group, options in enumerate(problem.options)
        ]
        parent = [self._seconds(problem, group, choice) for group, choice in enumerate(problem.parent.choices)]
        (batch,) = self.scenario.batch_sizes
        whole = (
            problem.costs.tokens(SCENARIO, batch) / problem.costs.predict(problem.parent, SCENARIO, batch).throughput
        )
        return whole / (whole - sum(parent) + sum(seconds))

    def _seconds(self, problem: Problem, group: int, choice: Choice) -> float:
        (batch,) = self.scenario.batch_sizes
        layer = problem.layer(group)
        return sum(problem.costs.usage("throughput", SCENARIO, batch, layer, *piece) for piece in pieces_of(choice))

    def speed(self, architecture: Architecture) -> float:
        """Return the predicted throughput over the packed parent's."""
        problem = self.problem(1.0)
        (batch,) = self.scenario.batch_sizes
        parts = [problem.costs.predict(each, SCENARIO, batch).throughput for each in (architecture, problem.parent)]
        return parts[0] / parts[1]


def plain(architecture: Architecture) -> dict[str, Any]:
    """Return an architecture as JSON."""
    return asdict(architecture)
