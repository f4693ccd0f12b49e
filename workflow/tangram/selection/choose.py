"""Choose the best candidate within a budget, by any policy; the command `select_child` runs this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tangram import extensions
from tangram.selection.best_arm import PairedHalving

HALVING: dict[str, dict[str, Any]] = {
    "paired-halving": {},
    "sign-halving": {"judge": "signs"},
    "uniform": {"rounds": 1},
}
PATIENCE = 4  # duels per cell of the table, after which a converged policy stops


class Scores(Protocol):
    """A table of candidates and prompts whose entries are computed on first access; lower is better."""

    arms: int
    prompts: int

    @property
    def ordinal(self) -> bool:
        """Whether only the order of two candidates' entries on one prompt is meaningful, as for a judge's votes."""
        ...

    @property
    def cells(self) -> int:
        """Number of entries computed so far."""
        ...

    def look(self, arms: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """Return the entries of ``arms`` ``(k,)`` and ``prompts`` ``(m,)``, ``(k, m)``."""
        ...


@dataclass(frozen=True)
class Choice:
    """The chosen candidate, and its cost beyond the cells of the table.

    Attributes:
        candidate: index of the recommended candidate.
        duels: number of distinct comparisons of two candidates on a prompt (votes, for a judge); 0 if means decided.
    """

    candidate: int
    duels: int


def choose(name: str, scores: Scores, budget: int, rng: np.random.Generator) -> Choice:
    """Return the candidate that a policy recommends after it has spent ``budget`` cells.

    The decisions are a function of the scores and ``rng``: after a kill, the same call on a table with cached entries
    replays them and continues.

    Args:
        name: ``'paired-halving'``, ``'sign-halving'``, ``'uniform'``, or a dueling policy registered as
            `tangram.policies`; the lower score on the pair's next prompt wins a duel.
        scores: the table.
        budget: cells, at least one per candidate.
        rng: random generator of the order of prompts and of the policy.

    Raises:
        TangramError: no such policy is registered.
        ValueError: the policy needs values but the scores are votes, or the budget is too small.
    """
    if name == "paired-halving" and scores.ordinal:
        raise ValueError("paired-halving compares values, and votes have none; use sign-halving, which counts votes")
    order = rng.permutation(scores.prompts)
    if name in HALVING:
        options = HALVING[name] | ({"judge": "signs"} if scores.ordinal else {})
        return _halve(PairedHalving(1, scores.arms, scores.prompts, budget, **options), scores, order, rng)
    duels = np.zeros((scores.arms, scores.arms), dtype=np.int64)
    max_duels = PATIENCE * scores.arms * scores.prompts
    dueling = extensions.load("tangram.policies", name)(1, scores.arms)
    for _ in range(max_duels):
        if scores.cells >= budget:
            break
        left, right = dueling.select(rng)
        pair = (int(min(left[0], right[0])), int(max(left[0], right[0])))
        prompt = order[duels[pair] % scores.prompts]
        duels[pair] += 1
        left_score, right_score = (float(scores.look(arm, np.array([prompt]))[0, 0]) for arm in (left, right))
        right_wins = rng.random() < 0.5 if left_score == right_score else left_score > right_score
        dueling.update((left, right), np.array([right_wins]))
    # Repeated votes are cached, and a candidate's duel with itself needs no vote.
    distinct = np.minimum(np.triu(duels, 1), scores.prompts).sum()
    return Choice(int(dueling.recommend()[0]), int(distinct))


def shortlist(scores: Scores, budget: int, rng: np.random.Generator) -> list[int]:
    """Return all candidates, the best mean first, after each has seen the same prompts.

    Args:
        scores: the table.
        budget: cells, at least one per candidate.
        rng: random generator of the choice of prompts.
    """
    prompts = rng.permutation(scores.prompts)[: budget // scores.arms]
    means = scores.look(np.arange(scores.arms), prompts).mean(1)
    return [int(candidate) for candidate in means.argsort(kind="stable")]


def _halve(policy: PairedHalving, scores: Scores, order: np.ndarray, rng: np.random.Generator) -> Choice:
    duels = 0
    while not policy.done:
        arms, prompts = policy.select(rng)
        if policy.judge == "signs":
            duels += arms.shape[1] * (arms.shape[1] - 1) // 2 * len(prompts)
        policy.update((arms, prompts), scores.look(arms[0], order[prompts])[None])
    return Choice(int(policy.recommend()[0]), duels)
