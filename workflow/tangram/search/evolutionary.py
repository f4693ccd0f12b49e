"""An evolutionary search on the true score of assembled children, after EvoPress (arXiv 2410.14649).

Each generation, the best child so far has offspring by level switches: one group (a layer or the head) takes a cheaper
option, another one a more expensive option, so that all limits still hold. Offspring are selected in stages, each on
more text than the one before, with the parent of the generation as a competitor in the last. All offspring of a stage
are compared on the same sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tangram.blocks.architecture import Architecture
from tangram.config import Evolution
from tangram.errors import TangramError
from tangram.search.problem import TOLERANCE, Batches, Problem

# Maps children and indices of sequences to scores, (children, sequences).
Evaluate = Callable[[Sequence[Architecture], Sequence[int]], np.ndarray]
MOST_SWITCHES = 3
TRIES = 1000  # draws of two groups for a switch
IDLE = 20  # generations without a new child, after which the search ends


class Mutations:
    """Level switches within a target's limits at fixed batch sizes.

    Args:
        problem: the target's problem.
        batches: batch sizes by scenario.
        rng: source of all randomness.
    """

    def __init__(self, problem: Problem, batches: Batches, rng: np.random.Generator):
        self._problem, self._batches, self._rng = problem, batches, rng
        self._resources = problem.resources(batches)
        self._weight = self._resources.usage.sum(0)  # (options,), over all limits
        groups = np.arange(len(problem.options))
        self._of_group = [np.flatnonzero(problem.group_of == group) for group in groups]

    def offspring(self, architecture: Architecture) -> Architecture | None:
        """Return an architecture that differs by 1 to `MOST_SWITCHES` switches; None if no switch keeps the limits."""
        positions = np.array([self._problem.position(*pair) for pair in enumerate(architecture.choices)])
        switches = int(min(self._rng.integers(1, MOST_SWITCHES + 1, 2)))
        changed = positions
        for _ in range(switches):
            for _ in range(TRIES):
                if (trial := self._switch(changed)) is not None:
                    changed = trial
                    break
        return None if (changed == positions).all() else self._architecture(changed)

    def _switch(self, positions: np.ndarray) -> np.ndarray | None:
        """Return the choices after one switch of two random groups; None if these have none."""
        cheaper, dearer = self._rng.choice(len(positions), 2, replace=False)
        lighter = self._options(cheaper, positions, heavier=False)
        heavier = self._options(dearer, positions, heavier=True)
        if not len(lighter) or not len(heavier):
            return None
        trial = positions.copy()
        trial[cheaper] = self._rng.choice(lighter)
        for option in self._rng.permutation(heavier):
            trial[dearer] = option
            if self._fits(trial):
                return trial
        return None

    def _options(self, group: int, positions: np.ndarray, heavier: bool) -> np.ndarray:
        """Return a group's options that use more (or less) than its present one."""
        options = self._of_group[group]
        difference = self._weight[options] - self._weight[positions[group]]
        return options[difference > 0] if heavier else options[difference < 0]

    def _fits(self, positions: np.ndarray) -> bool:
        if self._resources.stub.any():  # whose replacement depends on neighbors
            return self._problem.feasible(self._architecture(positions), self._batches)
        used = self._resources.usage[:, positions].sum(1)
        return bool((used <= self._resources.budget + TOLERANCE).all())

    def _architecture(self, positions: np.ndarray) -> Architecture:
        values = np.zeros(len(self._problem.scores))
        values[positions] = 1.0
        return self._problem.architecture(values)


@dataclass
class Evaluations:
    """True scores by child and sequence, each computed once.

    Attributes:
        evaluate: computes scores.
        sequences: number of sequences of the text.
        cells: number of scores of one child on one sequence so far.
        values: scores by child, ``(sequences,)``, NaN where missing.
    """

    evaluate: Evaluate
    sequences: int
    cells: int = 0
    values: dict[Architecture, np.ndarray] = field(default_factory=dict)

    def means(self, children: Sequence[Architecture], rows: np.ndarray) -> np.ndarray:
        """Return the children's mean scores on some sequences, ``(children,)``."""
        for child in children:
            self.values.setdefault(child, np.full(self.sequences, np.nan))
        missing = [child for child in dict.fromkeys(children) if np.isnan(self.values[child][rows]).any()]
        unseen = [row for row in rows.tolist() if any(np.isnan(self.values[child][row]) for child in missing)]
        if missing:
            for child, scores in zip(missing, self.evaluate(missing, unseen), strict=True):
                self.values[child][unseen] = scores
            self.cells += len(missing) * len(unseen)
        return np.array([self.values[child][rows].mean() for child in children])


@dataclass(frozen=True)
class Evolved:
    """The result of an evolutionary search.

    Attributes:
        architecture: the best child.
        curve: after every generation, the evaluations so far (in children on the whole text) and the best score.
        values: scores of all children by sequence, NaN where not computed.
    """

    architecture: Architecture
    curve: tuple[tuple[float, float], ...]
    values: dict[Architecture, np.ndarray]


def evolve(
    problem: Problem,
    batches: Batches,
    start: Architecture,
    evaluate: Evaluate,
    sequences: int,
    settings: Evolution,
    seed: int,
) -> Evolved:
    """Return the best child by its true score on a text, within a budget of evaluations.

    Args:
        problem: the target's problem.
        batches: batch sizes by scenario, at which all children satisfy the limits.
        start: the first parent.
        evaluate: true scores of children on sequences of the text; lower is better.
        sequences: number of sequences of the text.
        settings: budget, offspring, and shares of the text.
        seed: seed of all randomness.

    Raises:
        TangramError: the first parent exceeds a limit.
    """
    if not problem.feasible(start, batches):
        raise TangramError("the evolution's first child exceeds the target's limits; please report this as a bug")
    rng = np.random.default_rng(seed)
    mutations, scores = Mutations(problem, batches, rng), Evaluations(evaluate, sequences)
    everything = np.arange(sequences)
    best, value = start, float(scores.means([start], everything)[0])
    curve, idle = [(scores.cells / sequences, value)], 0
    while scores.cells < settings.evaluations * sequences and idle < IDLE:
        drawn = (mutations.offspring(best) for _ in range(settings.offspring))
        children = [child for child in dict.fromkeys(drawn) if child is not None and child != best]
        if not children:
            break
        cells, order = scores.cells, rng.permutation(sequences)
        for share, survivors in zip(settings.shares, _survivors(settings), strict=True):
            rows = np.sort(order[: math.ceil(share * sequences)])
            means = scores.means(children, rows)
            children = [children[i] for i in np.argsort(means, kind="stable")[:survivors]]
        child_value = float(scores.means(children[:1], everything)[0])
        if child_value < value:
            best, value = children[0], child_value
        curve.append((scores.cells / sequences, value))
        idle = idle + 1 if scores.cells == cells else 0
    return Evolved(best, tuple(curve), scores.values)


def _survivors(settings: Evolution) -> list[int]:
    """Return the children that are left after each stage, which keeps the same share of them; 1 after the last."""
    stages = len(settings.shares)
    return [max(1, round(settings.offspring ** (1 - stage / stages))) for stage in range(1, stages + 1)]
