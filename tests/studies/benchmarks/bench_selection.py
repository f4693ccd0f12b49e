"""Speed of duels and rankings: compared with duelpy for algorithms that both have, and over sizes.

Run: ``python tests/studies/benchmarks/bench_selection.py``; it prints tables in Markdown and takes two minutes. duelpy
1.0.0 predates NumPy 1.24, so three removed aliases of NumPy are restored for it. Its RUCB ignores the bools that it
gets, since it expects a negative number for a loss, so this benchmark passes signs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tangram_studies.bandits.bandit_ranking import BanditRank, CombBand
from tangram_studies.bandits.dueling import DUELING
from tangram_studies.bandits.environments import Duels
from tangram_studies.bandits.ranking import OnlineRank
from tangram_studies.bandits.simulation import has_numba, simulate_duels
from tangram_studies.papers.bandit_ranking import seconds_per_step
from tangram_studies.papers.online_ranking import seconds_per_round

ARMS, ROUNDS, REPEATS, SIDE_BY_SIDE = 16, 2000, 3, 400
DUELPY = "1.0.0"
THEIRS = {"rucb": "RelativeUCB", "double-thompson": "DoubleThompsonSampling"}  # alpha is 0.51 in both and in ours
SLOW = ("double-thompson", "versatile-db", "beat-the-mean")  # measured on fewer rounds


def environment(replications: int) -> Duels:
    """Return duels of 16 arms with equally spaced utilities."""
    return Duels.of_utilities(np.linspace(0.9, 0.1, ARMS), "linear", replications, np.random.default_rng(0))


def rate(play: Callable[[], object], duels: int) -> float:
    """Return duels per second of process time, the median of `REPEATS` after one warm-up."""
    play()
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        play()
        seconds.append(time.process_time() - start)
    return duels / statistics.median(seconds)


def ours(name: str, engine: Any, replications: int, rounds: int) -> float:
    """Return one policy's duels per second in an engine."""
    duels = environment(replications)
    return rate(lambda: simulate_duels(name, duels, rounds, [rounds], 0, engine), replications * rounds)


def load_duelpy() -> Any:
    """Return the module duelpy.

    Raises:
        SystemExit: it is not installed, or of another version.
    """
    for alias, kind in (("float", float), ("int", int), ("infty", np.inf)):
        if not hasattr(np, alias):
            setattr(np, alias, kind)
    try:
        import duelpy.algorithms
        import duelpy.feedback
    except ImportError as error:
        raise SystemExit(f"duelpy is missing ({error}): pip install duelpy=={DUELPY}") from None
    return duelpy


def duelpys(duelpy: Any, name: str) -> float:
    """Return duelpy's duels per second on the same duels; it plays one replication at a time."""
    preferences = environment(1).preferences[0]

    class Signed(duelpy.feedback.MatrixFeedback):  # type: ignore[misc]
        """Feedback for duelpy's RUCB: negative if the second arm wins."""

        def duel(self, *arms: int) -> object:
            won = super().duel(*arms)
            return (1 if won else -1) if name == "rucb" else won

    def play() -> None:
        feedback = Signed(preferences, random_state=np.random.RandomState(0))
        algorithm = getattr(duelpy.algorithms, THEIRS[name])
        algorithm(feedback, ROUNDS, random_state=np.random.RandomState(0)).run()

    return rate(play, ROUNDS)


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    for row in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def duels_per_second(duelpy: Any) -> None:
    """Print every policy's rate in every engine, and the ratios to duelpy."""
    from tangram_studies.bandits.kernels import KERNELS

    rows = []
    for name in DUELING:
        one = ours(name, "numpy", 1, ROUNDS)
        many = ours(name, "numpy", SIDE_BY_SIDE, 100 if name in SLOW else 400)
        compiled = ours(name, "numba", 4 if name in SLOW else 20, 10_000) if name in KERNELS else None
        theirs = duelpys(duelpy, name) if name in THEIRS else None
        ratios = [f"{rate_ / theirs:,.1f}" if theirs and rate_ else "" for rate_ in (one, many, compiled)]
        rates = [f"{rate_:,.0f}" if rate_ else "" for rate_ in (one, many, compiled, theirs)]
        rows.append([name, *rates, *ratios])
        print(f"{name} done", file=sys.stderr)
    print(f"Duels per second of one core, {ARMS} arms; NumPy with 1 and {SIDE_BY_SIDE} replications at once.\n")
    engines = ["NumPy, 1", f"NumPy, {SIDE_BY_SIDE}", "numba"]
    print_table(["policy", *engines, "duelpy", *(f"{engine} / duelpy" for engine in engines)], rows)


def rankings() -> None:
    """Print the time of a round over the number of items, and the exponent of its growth at the largest sizes."""
    rows = []
    measured: dict[str, tuple[list[int], Callable[[int], float]]] = {
        "OnlineRank": (
            [2**power for power in range(6, 17)],
            lambda n: float(np.median(seconds_per_round(OnlineRank(1, n, 0.1), REPEATS))),
        ),
        "BanditRank": (
            [4, 8, 16, 32, 64],
            lambda n: float(np.median(seconds_per_step(BanditRank(8, n, 0.01, 0.1), REPEATS))),
        ),
        "CombBand": ([4, 5, 6, 7], lambda n: float(np.median(seconds_per_step(CombBand(8, n, 0.01, 0.1), REPEATS)))),
    }
    for name, (sizes, seconds_of) in measured.items():
        before = None
        for n in sizes:
            seconds = seconds_of(n)
            growth = f"{np.log(seconds / before[1]) / np.log(n / before[0]):.2f}" if before else ""
            rows.append([name, f"{n:,}", f"{1e6 * seconds:,.1f}", growth])
            before = (n, seconds)
        print(f"{name} done", file=sys.stderr)
    print("Time of a round: a ranking drawn, its feedback taken; n log n has an exponent just above 1.\n")
    print_table(["policy", "items", "microseconds", "exponent from the size before"], rows)


def main() -> None:
    """Print both tables."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    if not has_numba():
        raise SystemExit("numba is missing: pip install 'tangram[fast]'")
    duels_per_second(load_duelpy())
    rankings()


if __name__ == "__main__":
    main()
