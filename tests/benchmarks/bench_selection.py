"""How fast duels and rankings are, all in one run: against duelpy where it has the same algorithm, and over sizes.

Run: ``python tests/benchmarks/bench_selection.py``. duelpy 1.0.0 (``pip install --no-deps duelpy==1.0.0``) predates
NumPy 1.24: three of its aliases are put back here, and RUCB, which ignores feedback as shipped, is given signs.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from tangram.selection.bandit_ranking import BanditRank, CombBand
from tangram.selection.dueling import DUELING
from tangram.selection.environments import Duels
from tangram.selection.ranking import OnlineRank
from tangram.selection.simulation import numba_is_there, simulate_duels
from tangram.studies.bandit_ranking import seconds_per_step
from tangram.studies.online_ranking import seconds_per_round

ARMS, ROUNDS, REPEATS = 16, 2000, 3


def environment(replications: int) -> Duels:
    """Return duels of 16 arms whose utilities fall evenly."""
    return Duels.of_utilities(np.linspace(0.9, 0.1, ARMS), "linear", replications, np.random.default_rng(0))


def rate(play: Callable[[], object], duels: int) -> float:
    """Return duels per second of process time, the median of some repeats after one to warm up."""
    play()
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        play()
        seconds.append(time.process_time() - start)
    return duels / statistics.median(seconds)


def ours(name: str, engine: str, replications: int, rounds: int) -> float:
    """Return one policy's duels per second in an engine."""
    duels = environment(replications)
    return rate(lambda: simulate_duels(name, duels, rounds, [rounds], 0, engine), replications * rounds)  # type: ignore


def duelpys(name: str) -> float | None:
    """Return duelpy's duels per second, one replication at a time; None where it is not installed."""
    for alias, kind in (("float", float), ("int", int), ("infty", np.inf)):
        if not hasattr(np, alias):
            setattr(np, alias, kind)
    try:
        import duelpy.algorithms as algorithms
        from duelpy.feedback import MatrixFeedback
    except ImportError:
        return None
    duels = environment(1)
    kind = {"rucb": "RelativeUCB", "double-thompson": "DoubleThompsonSampling"}[name]

    class Signed(MatrixFeedback):
        """Feedback that RUCB reads: negative where the second arm wins."""

        def duel(self, *arms: int) -> object:
            won = super().duel(*arms)
            return (1 if won else -1) if name == "rucb" else won

    def play() -> None:
        feedback = Signed(duels.preferences[0], random_state=np.random.RandomState(0))
        getattr(algorithms, kind)(feedback, ROUNDS, random_state=np.random.RandomState(0)).run()

    return rate(play, ROUNDS)


def main() -> None:
    """Print rates and ratios."""
    print(f"duels per second, {ARMS} arms, one core; NumPy with 400 replications side by side")
    for name in DUELING:
        slow = name in ("double-thompson", "versatile-db", "beat-the-mean")
        line = f"  {name:20} NumPy {ours(name, 'numpy', 400, 100 if slow else 400):12,.0f}"
        compiled = None
        if numba_is_there():
            from tangram.selection.kernels import KERNELS

            if name in KERNELS:
                compiled = ours(name, "numba", 4 if slow else 20, 10_000)
                line += f"   numba {compiled:12,.0f}"
        if name in ("rucb", "double-thompson"):
            theirs = duelpys(name)
            if theirs is None:
                line += "   duelpy is not installed: pip install --no-deps duelpy==1.0.0"
            else:
                best = compiled or ours(name, "numpy", 400, 100)
                line += f"   duelpy {theirs:8,.0f}   ratio {best / theirs:.0f}"
        print(line, flush=True)

    print("microseconds of one round, by items")
    sizes = [2**power for power in range(6, 17, 2)]
    found = [float(np.median(seconds_per_round(OnlineRank(1, n, 0.1), 3))) for n in sizes]
    print("  OnlineRank  ", "  ".join(f"{n}: {1e6 * s:,.0f}" for n, s in zip(sizes, found, strict=True)))
    grown = found[-1] / found[-2] / (sizes[-1] * np.log(sizes[-1]) / sizes[-2] / np.log(sizes[-2]))
    print(f"              growth over n log n from {sizes[-2]:,} to {sizes[-1]:,}: {grown:.2f}")
    for label, kind, items in (("BanditRank", BanditRank, (5, 7, 8, 16, 32, 64)), ("CombBand", CombBand, (5, 6, 7))):
        steps = [float(np.median(seconds_per_step(kind(8, n, 0.01, 0.1), 3))) for n in items]
        print(f"  {label:12}", "  ".join(f"{n}: {1e6 * s:,.0f}" for n, s in zip(items, steps, strict=True)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
