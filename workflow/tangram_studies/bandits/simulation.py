"""Simulation of policies: curves of regret, and replays of a full table of scores under a budget."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tangram_studies.bandits.dueling import DuelingPolicy, make_dueling
from tangram_studies.bandits.environments import Duels, ScoreTable, choice_sequence
from tangram_studies.bandits.ranking import RankingPolicy

Engine = Literal["auto", "numpy", "numba"]


def has_numba() -> bool:
    """Return whether numba is installed, which compiles the kernels."""
    return importlib.util.find_spec("numba") is not None


def run_duels(
    policy: DuelingPolicy, environment: Duels, rounds: int, checkpoints: Sequence[int], rng: np.random.Generator
) -> np.ndarray:
    """Play a policy; return cumulative regret at each checkpoint, ``(checkpoints, replications)``."""
    regret, curve = np.zeros(environment.replications), []
    recorded_rounds = set(checkpoints)
    for played in range(1, rounds + 1):
        pair = policy.select(rng)
        policy.update(pair, environment.play(*pair, rng))
        regret += environment.regret(*pair)
        if played in recorded_rounds:
            curve.append(regret.copy())
    return np.array(curve)


def simulate_duels(
    name: str,
    environment: Duels,
    rounds: int,
    checkpoints: Sequence[int],
    seed: int | np.random.SeedSequence,
    engine: Engine = "auto",
    threads: int = 1,
    **options: Any,
) -> np.ndarray:
    """Play the dueling policy of that name, compiled if possible.

    Args:
        name: one of `dueling.DUELING`.
        environment: the duels to play.
        rounds: number of rounds.
        checkpoints: increasing numbers of rounds, at most ``rounds``.
        seed: seed of all random numbers; the two engines draw different ones from the same distribution.
        engine: ``'auto'`` takes numba where it is installed and has a kernel for the policy.
        threads: parallel replications of a compiled policy.
        options: options of the policy, such as ``alpha``.

    Returns:
        Cumulative regret, ``(checkpoints, replications)``.

    Raises:
        ValueError: the policy does not exist, or ``engine`` is ``'numba'`` and it has no kernel.
    """
    if engine != "numpy" and has_numba():
        from tangram_studies.bandits.kernels import KERNELS, run_kernel

        if name in KERNELS:
            return run_kernel(name, environment, rounds, checkpoints, seed, threads, **options)
    if engine == "numba":
        raise ValueError(f"'{name}' has no kernel, or numba is not installed: pip install 'tangram[fast]'")
    if (alpha := options.pop("alpha", None)) is not None:
        options |= machine_options(name, alpha)
    policy = make_dueling(name, environment.replications, environment.arms, rounds, **options)
    return run_duels(policy, environment, rounds, checkpoints, np.random.default_rng(seed))


def machine_options(name: str, alpha: float) -> dict[str, Any]:
    """Return a policy's options that make its confidence bounds use ``alpha``."""
    from functools import partial

    from tangram_studies.bandits.machines import UCB

    return {"machine": partial(UCB, alpha=alpha)} if name in ("sparring", "multisbm", "doubler") else {"alpha": alpha}


def run_ranking(
    policy: RankingPolicy,
    sequence: str,
    chosen: int,
    rounds: int,
    rng: np.random.Generator,
    sampled: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank a sequence of choices.

    Args:
        policy: a new policy.
        sequence: a kind of `environments.choice_sequence`.
        chosen: items chosen per round.
        rounds: number of rounds.
        rng: generator of the sequence and, if ``sampled``, of the rankings.
        sampled: sum the losses of drawn rankings in place of expected losses.

    Returns:
        The policy's loss and the best fixed ranking's, each ``(replications,)``.
    """
    environment_rng, policy_rng = rng.spawn(2)
    loss = np.zeros(policy.replications)
    for scores in choice_sequence(sequence, policy.items, chosen, rounds, policy.replications, environment_rng):
        positions = policy.select(policy_rng) if sampled else policy.expected_positions()
        loss += (scores * positions).sum(1)
        policy.update(positions, scores)
    best = (-np.sort(-policy.scores, axis=1) * np.arange(policy.items)).sum(1)
    return loss, best


def replay_halving(policy: Any, table: ScoreTable, rng: np.random.Generator) -> np.ndarray:
    """Let a halving policy of `best_arm` spend its budget on a table; return its choices, ``(replications,)``."""
    from tangram.selection.best_arm import PairedHalving

    while not policy.done:
        first, second = policy.select(rng)
        if isinstance(policy, PairedHalving):
            policy.update((first, second), table.look(first, second))
        else:
            wins = [table.play(left, right, rng) for left, right in zip(first.T, second.T, strict=True)]
            policy.update((first, second), np.stack(wins, axis=1))
    return table.candidates(policy.recommend())


def replay_duels(
    policy: DuelingPolicy,
    table: ScoreTable,
    budgets: Sequence[int],
    rng: np.random.Generator,
    unit: Literal["cells", "duels"],
    most_duels: int,
) -> np.ndarray:
    """Let a dueling policy play a table; return its recommendation when each budget is spent.

    Args:
        policy: policy whose arms are the table's candidates.
        table: the scores.
        budgets: increasing budgets, in ``unit``.
        rng: generator of the policy's draws.
        unit: unit of the budgets: distinct cells, or duels.
        most_duels: maximum number of duels, since a policy that has converged reads no new cells. Budgets that are
            then unspent get the last recommendation.

    Returns:
        Candidates, ``(budgets, replications)``.
    """
    recommended = np.full((len(budgets), table.replications), -1)
    for played in range(most_duels):
        pair = policy.select(rng)
        policy.update(pair, table.play(*pair, rng))
        spent = table.ledger.cells if unit == "cells" else table.ledger.duels
        reached = (recommended < 0) & (spent[None, :] >= np.asarray(budgets)[:, None])
        if reached.any():
            recommended = np.where(reached, policy.recommend()[None, :], recommended)
        if (recommended[-1] >= 0).all() or played == most_duels - 1:
            break
    return table.candidates(np.where(recommended < 0, policy.recommend()[None, :], recommended))
