"""Choose the best candidate under a budget, by any policy: what the pipeline's `select_child` runs."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from tangram.selection.best_arm import PairedHalving
from tangram.selection.dueling import make_dueling

HALVING: dict[str, dict[str, Any]] = {
    "paired-halving": {},
    "sign-halving": {"judge": "signs"},
    "uniform": {"rounds": 1},
}
PATIENCE = 4  # duels per cell of the table, after which a policy that has settled is stopped


class Scores(Protocol):
    """A table of candidates and prompts whose entries cost something when they are first looked at; less is better."""

    arms: int
    prompts: int

    @property
    def cells(self) -> int:
        """Entries looked at so far."""
        ...

    def look(self, arms: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """Return the entries of ``arms`` ``(k,)`` and ``prompts`` ``(m,)``, ``(k, m)``."""
        ...


def choose(name: str, scores: Scores, budget: int, rng: np.random.Generator) -> int:
    """Return the candidate that a policy recommends once it has spent ``budget`` cells.

    All is a function of the scores and ``rng``: after a kill, the same call on a table that remembers its entries
    decides as before in no time, and goes on.

    Args:
        name: ``'paired-halving'``, ``'sign-halving'``, ``'uniform'``, or one of `dueling.DUELING`, whose duels
            are won by the lower score on the pair's next prompt.
        scores: the table.
        budget: cells, at least one per candidate.
        rng: shuffles prompts, and is the policy's.

    Raises:
        ValueError: an unknown policy, or a budget that buys nothing.
    """
    order = rng.permutation(scores.prompts)
    if name in HALVING:
        policy = PairedHalving(1, scores.arms, scores.prompts, budget, **HALVING[name])
        while not policy.done:
            arms, prompts = policy.select(rng)
            policy.update((arms, prompts), scores.look(arms[0], order[prompts])[None])
        return int(policy.recommend()[0])
    duels = np.zeros((scores.arms, scores.arms), dtype=np.int64)
    most = PATIENCE * scores.arms * scores.prompts
    dueling = make_dueling(name, 1, scores.arms, most)
    for _ in range(most):
        if scores.cells >= budget:
            break
        left, right = dueling.select(rng)
        pair = (int(min(left[0], right[0])), int(max(left[0], right[0])))
        prompt = order[duels[pair] % scores.prompts]
        duels[pair] += 1
        one, other = (float(scores.look(arm, np.array([prompt]))[0, 0]) for arm in (left, right))
        won = rng.random() < 0.5 if one == other else one > other
        dueling.update((left, right), np.array([won]))
    return int(dueling.recommend()[0])
