"""Bandit online optimization over the permutahedron (Ailon, Hatano and Takimoto 2014, arXiv 1312.1530).

The claims: BanditRank's estimates are unbiased, its covariance lemma holds, and its regret is close to CombBand's. A
step takes O(n^3), whereas CombBand needs permanents. The paper does not claim less regret.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tangram.report.document import Figure
from tangram.report.style import number
from tangram_studies.bandits import plackett_luce
from tangram_studies.bandits.bandit_ranking import (
    BanditPolicy,
    BanditRank,
    CombBand,
    all_rankings,
    bandit_rank_bound,
    bandit_rank_rates,
    comb_band_bound,
    comb_band_rates,
    uniform_second_moment,
)
from tangram_studies.plots import PALETTE, Line, draw_lines, spread_line
from tangram_studies.study import Claim, Job, NotReproduced, Study, interval

EXACT = 1e-9
KINDS: dict[str, tuple[Callable[..., Any], Callable[[int, int], tuple[float, float]], Callable[[int, int], float]]] = {
    "BanditRank": (BanditRank, bandit_rank_rates, bandit_rank_bound),
    "CombBand": (CombBand, comb_band_rates, comb_band_bound),
}
COLORS = dict(zip(KINDS, PALETTE, strict=False))
Regrets = dict[tuple[str, int], np.ndarray]  # (replications,) by policy and rounds


@dataclass(frozen=True)
class Scale:
    """The size of the study: random distributions for the lemma, horizons in rounds, replications of each."""

    laws: int
    horizons: tuple[int, ...]
    replications: int


SCALES = {
    "small": Scale(21_000, (1000, 4000, 16_000), 40),
    "full": Scale(100_000, (1000, 4000, 16_000, 64_000), 100),
}


def run_study(job: Job) -> Study:
    """Run the study for the rule."""
    study = reproduce(SCALES[job.studies.scale], job.runtime.seed)
    study.about = f"scale {job.studies.scale}"
    return study


def reproduce(scale: Scale, seed: int) -> Study:
    """Return the finished study; ``seed`` determines all random numbers."""
    study = Study("bandit_ranking", "Bandit online optimization over the permutahedron", "1312.1530")
    rng = np.random.default_rng(seed)
    _identities(study, rng)
    _lemma(study, rng, scale.laws)
    _regret(study, seed, scale.horizons, scale.replications)
    _speed(study, 5)
    study.notes += [
        "The paper's rates and constants could not be read: we derived those used here, and the closed forms of the "
        "covariance (`bandits/bandit_ranking.py`, `bandits/plackett_luce.py`).",
        "Its regret O(n^{3/2} sqrt T) is no better than CombBand's O(n sqrt(T log n)); its advantage is time.",
        "For T below n^3 the bound exceeds the trivial one: one scalar per round has little information on n items.",
    ]
    study.not_reproduced.append(
        NotReproduced(
            "the journal version's mirror descent with decomposition",
            "same regret and time up to a line search",
            "not implemented",
        )
    )
    return study


def _law(policy: BanditPolicy) -> np.ndarray:
    """Return the probability of each of `all_rankings`, for the first replication."""
    rankings = all_rankings(policy.items)
    if isinstance(policy, CombBand):
        return policy.probabilities()[0]
    order = rankings.argsort(1)
    weights = np.broadcast_to(policy.eta * policy.losses[0], order.shape)
    drawn = np.exp(plackett_luce.log_probability(order, weights))
    return (1 - policy.gamma) * drawn + policy.gamma / len(rankings)


def _identity(study: Study, claim: str, statement: str, where: str, error: float, cases: int, note: str = "") -> None:
    study.record("identities", claim, 0, "largest error", error)
    study.claims.append(
        Claim(
            claim,
            statement,
            where,
            f"largest error {number(error)} in {cases} cases, by enumeration of all rankings",
            "supported" if error < EXACT else "refuted",
            1,
            paper_value="exact",
            estimate=error,
            unit="absolute error",
            note=note,
        )
    )


def _identities(study: Study, rng: np.random.Generator) -> None:
    bias, closed, leverage, cases = {"BanditRank": 0.0, "CombBand": 0.0}, 0.0, 0.0, 0
    for items, _ in itertools.product((3, 4, 5, 6), range(5)):
        rankings, cases = all_rankings(items), cases + 1
        losses, hidden = rng.normal(size=items) * 4, rng.normal(size=items)
        for name, (kind, _, _) in KINDS.items():
            policy = kind(len(rankings), items, 0.3, 0.1)
            policy.losses += losses
            estimates = policy.estimate(rankings, rankings @ hidden)
            bias[name] = max(bias[name], float(np.abs(_law(policy) @ estimates - hidden).max()))
        policy = BanditRank(1, items, 1.0, 0.0)
        policy.losses += losses
        law, positions = _law(policy), rankings - 1
        mean = law @ positions
        covariance = np.einsum("p,pi,pj->ij", law, positions, positions) - np.outer(mean, mean)
        closed = max(closed, float(np.abs(plackett_luce.position_covariance(losses) - covariance).max()))
        inverse = np.linalg.inv(uniform_second_moment(items))
        leverages = np.einsum("pi,ij,pj->p", rankings, inverse, rankings)
        leverage = max(leverage, float(np.abs(leverages - items).max()))
    statement = "the estimate of the hidden vector is unbiased"
    _identity(study, "unbiased", statement, "lemma", bias["BanditRank"], cases)
    _identity(study, "unbiased-combband", f"{statement} (CombBand)", "Cesa-Bianchi and Lugosi", bias["CombBand"], cases)
    statement = "E[pi pi^T] of a Plackett-Luce law can be computed in O(n^3)"
    _identity(study, "covariance", statement, "section 4", closed, cases, "the closed form is ours")
    statement = "uniform exploration is optimal: every ranking has leverage n"
    _identity(study, "leverage", statement, "exploration", leverage, cases, "ours")


def _lemma(study: Study, rng: np.random.Generator, laws: int) -> None:
    """Check the Loewner order on random distributions of 3 to 8 items, from almost uniform to almost deterministic."""
    least, checked, ratios = math.inf, 0, []
    sizes = range(3, 9)
    for items in sizes:
        count = -(-laws // len(sizes))
        logits = rng.normal(size=(count, items)) * np.exp(rng.uniform(math.log(0.1), math.log(6), (count, 1)))
        before = plackett_luce.pair_marginals(logits)
        spread = before * np.swapaxes(before, 1, 2)
        pairs = -spread
        pairs[:, range(items), range(items)] = spread.sum(2)
        difference = plackett_luce.position_covariance(logits) - pairs
        values = np.linalg.eigvalsh(difference)[:, 0] / np.trace(pairs, axis1=1, axis2=2)
        least, checked = min(least, float(values.min())), checked + count
        ratios.append(float(np.mean(values >= -EXACT)))
    study.record("lemma", "smallest eigenvalue", 0, "over the trace", least)
    study.claims.append(
        Claim(
            "covariance-lemma",
            "Cov(pi) >= sum over pairs of q_uv q_vu (e_u - e_v)(e_u - e_v)^T",
            "main lemma",
            f"smallest eigenvalue of the difference: {number(least)} of the trace; {checked:,} laws of 3 to 8 items",
            "supported" if least > -EXACT else "refuted",
            checked,
            paper_value="at least 0",
            estimate=least,
            unit="share of the trace",
            note="zero is attained: positions add to a constant",
        )
    )


def play(name: str, items: int, rounds: int, replications: int, rng: np.random.Generator) -> np.ndarray:
    """Return regret against the best fixed ranking, ``(replications,)``.

    In each round one item is drawn with popularity 1/rank; the loss is its position over n, in (0, 1].
    """
    kind, rates, _ = KINDS[name]
    policy = kind(replications, items, *rates(items, rounds))
    environment_rng, policy_rng = rng.spawn(2)
    popularity = 1 / np.arange(1, items + 1)
    popularity /= popularity.sum()
    rows, loss, counts = np.arange(replications), np.zeros(replications), np.zeros((replications, items))
    for _ in range(rounds):
        item = environment_rng.choice(items, size=replications, p=popularity)
        positions = policy.select(policy_rng)
        round_loss = positions[rows, item] / items
        policy.update(positions, round_loss)
        loss += round_loss
        counts[rows, item] += 1
    best = (-np.sort(-counts, 1) * np.arange(1, items + 1)).sum(1) / items
    return loss - best


def _regret(study: Study, seed: int, horizons: tuple[int, ...], replications: int) -> None:
    items = 5
    regrets = {
        (name, rounds): play(name, items, rounds, replications, np.random.default_rng([seed, rounds]))
        for name in KINDS
        for rounds in horizons
    }
    _record_regret(study, regrets)
    _claim_bounds(study, items, horizons, regrets)
    _claim_growth(study, horizons, regrets)
    _claim_comparable(study, items, horizons[-1], regrets)
    lines = {}
    for name, (_, _, bound) in KINDS.items():
        lines[name] = spread_line(horizons, np.array([regrets[name, rounds] for rounds in horizons]), COLORS[name])
        lines[f"{name}'s bound"] = Line(horizons, [bound(items, t) for t in horizons], COLORS[name], True)
    svg = draw_lines("regret", "regret over rounds", {"n = 5": lines}, "rounds", "regret", 1, "xy", (8.0, 3.6))
    study.figures.append(Figure(svg, "Mean regret with one standard deviation, and the bounds that we derived."))


def _record_regret(study: Study, regrets: Regrets) -> None:
    for (name, rounds), values in regrets.items():
        for replication, value in enumerate(values):
            study.record("regret", name, replication, "regret", value, rounds)


def _claim_bounds(study: Study, items: int, horizons: tuple[int, ...], regrets: Regrets) -> None:
    for name, (_, _, bound) in KINDS.items():
        replications = len(regrets[name, horizons[0]])
        margins = {rounds: interval(bound(items, rounds) - regrets[name, rounds]) for rounds in horizons}
        closest = min(margins.values(), key=lambda margin: margin.estimate)
        study.claims.append(
            Claim.from_interval(
                closest,
                claim=f"bound-{name.lower()}",
                statement="regret O(n^{3/2} sqrt T)" if name == "BanditRank" else "regret O(n sqrt(T log n))",
                where="theorem" if name == "BanditRank" else "Cesa-Bianchi and Lugosi",
                measured="; ".join(
                    f"T {rounds:,}: {interval(regrets[name, rounds])}, bound {number(bound(items, rounds))}"
                    for rounds in horizons
                ),
                seeds=replications,
                unit="regret below the bound, the closest",
                note="n = 5; rates and constants are ours",
            )
        )


def _claim_growth(study: Study, horizons: tuple[int, ...], regrets: Regrets) -> None:
    growth = interval(
        np.log(regrets["BanditRank", horizons[-1]] / regrets["BanditRank", horizons[-2]].mean()) / math.log(4)
    )
    study.claims.append(
        Claim(
            "sqrt-t",
            "regret grows like sqrt T",
            "theorem",
            f"T to the power {growth} from {horizons[-2]:,} to {horizons[-1]:,} rounds",
            "supported" if growth.low <= 0.5 <= growth.high else "refuted" if growth.low > 0.65 else "inconclusive",
            len(regrets["BanditRank", horizons[-1]]),
            paper_value="0.5",
            estimate=growth.estimate,
            low=growth.low,
            high=growth.high,
            unit="exponent of T",
            note="not asymptotic: exploration is still a large share; refuted only if above 0.65",
        )
    )


def _claim_comparable(study: Study, items: int, last: int, regrets: Regrets) -> None:
    ratio = interval(regrets["BanditRank", last] / regrets["CombBand", last].mean())
    study.claims.append(
        Claim(
            "comparable",
            "BanditRank's regret is close to CombBand's, its bound sqrt(n / log n) larger",
            "abstract",
            f"BanditRank's over CombBand's at T = {last:,}: {ratio}",
            "supported" if ratio.high < math.sqrt(items / math.log(items)) else "inconclusive",
            len(regrets["BanditRank", last]),
            paper_value=f"at most about {number(math.sqrt(items / math.log(items)))}",
            estimate=ratio.estimate,
            low=ratio.low,
            high=ratio.high,
            unit="ratio of regrets",
            note="comparable, not better: by the bounds, CombBand has less regret for many items",
        )
    )


def seconds_per_step(policy: BanditPolicy, repeats: int, at_least: float = 0.05) -> np.ndarray:
    """Return seconds of one step of one replication, ``(repeats,)``."""
    rng, seconds = np.random.default_rng(0), []
    loss = np.full(policy.replications, 0.5)
    policy.update(policy.select(rng), loss)
    for _ in range(repeats):
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < at_least:
            policy.update(policy.select(rng), loss)
            steps += 1
        seconds.append((time.perf_counter() - start) / steps / policy.replications)
    return np.array(seconds)


def _speed(study: Study, repeats: int) -> None:
    sizes = {"BanditRank": (4, 5, 6, 7, 8, 16, 32, 64), "CombBand": (4, 5, 6, 7)}
    seconds: dict[str, np.ndarray] = {}
    for name, (kind, _, _) in KINDS.items():
        measured = [seconds_per_step(kind(8, n, 0.01, 0.1), repeats) for n in sizes[name]]
        seconds[name] = np.array(measured)  # (sizes, repeats)
        for n, row in zip(sizes[name], measured, strict=True):
            for repeat, value in enumerate(row):
                study.record("seconds", name, repeat, "seconds per step", value, n)
    bandit_rank, comb_band = seconds["BanditRank"], seconds["CombBand"]
    exponent = interval(np.log(bandit_rank[-1] / bandit_rank[-3]) / math.log(4))
    study.claims.append(
        Claim(
            "time",
            "a step takes O(n^3)",
            "abstract",
            f"seconds grow like n to the power {exponent} from n = 16 to 64; "
            f"{number(1 / np.median(bandit_rank[1]))} steps/s at n = 5, "
            f"{number(1 / np.median(bandit_rank[-2]))} at n = 32",
            "supported" if exponent.high < 3.3 else "refuted" if exponent.low > 3.3 else "inconclusive",
            repeats,
            paper_value="3",
            estimate=exponent.estimate,
            low=exponent.low,
            high=exponent.high,
            unit="exponent of n",
            note="8 parallel replications; 3.3 leaves room for caches that overflow",
        )
    )
    log_ratio = interval(np.log2(comb_band[-1] / bandit_rank[3]))
    growth = np.median(comb_band[-1]) / np.median(comb_band[-2])
    study.claims.append(
        Claim.from_interval(
            log_ratio,
            claim="faster-than-combband",
            statement="CombBand's steps need permanents, BanditRank's do not",
            where="abstract",
            measured=f"at n = 7 exact CombBand takes {2**log_ratio.estimate:.1f} times as long "
            f"[{2**log_ratio.low:.1f}, {2**log_ratio.high:.1f}], and from n = 6 to 7 its seconds grow by {growth:.1f}",
            seeds=repeats,
            unit="log2 of the ratio of seconds",
            note="CombBand enumerates n! rankings: 40,320 for 8 items",
        )
    )
    lines = {name: Line(sizes[name], np.median(seconds[name], 1), COLORS[name]) for name in KINDS}
    svg = draw_lines("seconds", "seconds per step over n", {"one step": lines}, "items", "seconds", 1, "xy", (7.5, 3.4))
    study.figures.append(Figure(svg, "Seconds of one step: polynomial against factorial."))
