"""Choose the best candidate under a budget, by any policy: what the pipeline's `select_child` runs."""

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
PATIENCE = 4  # duels per cell of the table, after which a policy that has settled is stopped


class Scores(Protocol):
    """A table of candidates and prompts whose entries cost something when they are first looked at; less is better."""

    arms: int
    prompts: int

    @property
    def ordinal(self) -> bool:
        """Whether only the order of two candidates' entries on one prompt means something: a judge's vote."""
        ...

    @property
    def cells(self) -> int:
        """Entries looked at so far."""
        ...

    def look(self, arms: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """Return the entries of ``arms`` ``(k,)`` and ``prompts`` ``(m,)``, ``(k, m)``."""
        ...


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what it took besides the cells that the table counts.

    Attributes:
        candidate: the one recommended.
        duels: pairs of candidates compared on a prompt, each once: votes, where a judge gives them. None where means
            of values decided.
    """

    candidate: int
    duels: int


def choose(name: str, scores: Scores, budget: int, rng: np.random.Generator) -> Choice:
    """Return the candidate that a policy recommends once it has spent ``budget`` cells.

    All is a function of the scores and ``rng``: after a kill, the same call on a table that remembers its entries
    decides as before in no time, and goes on.

    Args:
        name: ``'paired-halving'``, ``'sign-halving'``, ``'uniform'``, or a dueling policy registered as
            `tangram.policies`, whose duels are won by the lower score on the pair's next prompt.
        scores: the table.
        budget: cells, at least one per candidate.
        rng: shuffles prompts, and is the policy's.

    Raises:
        TangramError: an unknown policy.
        ValueError: a policy that needs values where there are only votes, or a budget that buys nothing.
    """
    if name == "paired-halving" and scores.ordinal:
        raise ValueError("paired-halving compares values, and votes have none; sign-halving counts votes")
    order = rng.permutation(scores.prompts)
    if name in HALVING:
        options = HALVING[name] | ({"judge": "signs"} if scores.ordinal else {})
        return _halve(PairedHalving(1, scores.arms, scores.prompts, budget, **options), scores, order, rng)
    duels = np.zeros((scores.arms, scores.arms), dtype=np.int64)
    most = PATIENCE * scores.arms * scores.prompts
    dueling = extensions.load("tangram.policies", name)(1, scores.arms)
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
    # A vote that is asked for again is known; nobody is asked about a candidate and itself.
    asked = np.minimum(np.triu(duels, 1), scores.prompts).sum()
    return Choice(int(dueling.recommend()[0]), int(asked))


def _halve(policy: PairedHalving, scores: Scores, order: np.ndarray, rng: np.random.Generator) -> Choice:
    duels = 0
    while not policy.done:
        arms, prompts = policy.select(rng)
        if policy.judge == "signs":
            duels += arms.shape[1] * (arms.shape[1] - 1) // 2 * len(prompts)
        policy.update((arms, prompts), scores.look(arms[0], order[prompts])[None])
    return Choice(int(policy.recommend()[0]), duels)
