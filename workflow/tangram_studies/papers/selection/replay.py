"""Replay of policies on a full table of scores, in many orders of the prompts, with budgets of tokens or votes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import kendalltau

from tangram.config import Selection
from tangram.report.document import Figure, Table
from tangram.report.style import number
from tangram.selection.best_arm import PairedHalving
from tangram_studies.bandits.dueling import make_dueling
from tangram_studies.bandits.environments import ScoreTable
from tangram_studies.bandits.halving import RoundRobinHalving
from tangram_studies.bandits.simulation import replay_duels, replay_halving
from tangram_studies.papers.selection.evidence import Evidence, Scale
from tangram_studies.plots import PALETTE, Line, draw_lines
from tangram_studies.study import Claim, Study, Verdict, interval, verdict_of

SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)  # shares of all cells
FLIP = 0.1  # error rate of the simulated judge
VALUES, SIGNS, UNIFORM, UNPAIRED, VOTED, ALL_PAIRS = (
    "paired halving, values",
    "paired halving, signs",
    "all candidates, same prompts",
    "all candidates, own prompts",
    "halving, votes",
    "all pairs, votes",
)
DUELS = ("double-thompson", "rucb", "versatile-db", "sparring", "multisbm", "doubler", "uniform")
COLORS = dict(zip((VALUES, SIGNS, UNIFORM, UNPAIRED, *DUELS), PALETTE * 2, strict=False))
COLORS |= {VOTED: COLORS[VALUES], ALL_PAIRS: COLORS[UNIFORM]}
# Names of the config's policies in this study; dueling bandits have the same names in both.
Choices = dict[tuple[str, float], np.ndarray]  # by policy and budget, each (replications,)
POLICIES = {"paired-halving": VALUES, "sign-halving": SIGNS, "uniform": UNIFORM}


def epsilon_of(values: np.ndarray) -> float:
    """Return one standard error of the paired difference of the best two rows of ``(candidates, prompts)``."""
    best, second = values.mean(1).argsort()[:2]
    return float((values[best] - values[second]).std(ddof=1) / np.sqrt(values.shape[1]))


def record_table(study: Study, evidence: Evidence) -> None:
    """Record the candidates' KL, and its rank correlation with the solver's sum of scores."""
    means, reported = evidence.scores.mean(1), evidence.reported.mean(1)
    errors = evidence.scores.std(1, ddof=1) / np.sqrt(evidence.scores.shape[1])
    rows = [
        [
            f"{arm}",
            number(evidence.objectives[arm]),
            f"{number(means[arm])} ± {number(errors[arm], 1)}",
            number(reported[arm]),
        ]
        for arm in means.argsort()
    ]
    columns = ["solution", "sum of scores", "KL, selection prompts", "KL, reported prompts"]
    study.figures.append(Table(columns, rows, title="All candidates, best first", folded=True))
    order = kendalltau(evidence.objectives, means).statistic
    across = kendalltau(means, reported).statistic
    rng = np.random.default_rng(0)
    draws = rng.integers(evidence.scores.shape[1], size=(400, evidence.scores.shape[1]))
    taus = [kendalltau(evidence.objectives, evidence.scores[:, draw].mean(1)).statistic for draw in draws]
    low, high = np.quantile(taus, [0.025, 0.975])
    study.claims.append(
        Claim(
            "sum-of-scores",
            "the solver's order of its solutions is the order of their KL",
            "the pipeline, without selection",
            f"Kendall's tau {number(order)} [{number(low)}, {number(high)}]; on selection against reported prompts "
            f"{number(across)}; the best is solution {means.argmin()}",
            "supported" if low > 0.8 else "refuted" if high < 0.8 else "inconclusive",
            400,
            estimate=float(order),
            low=float(low),
            high=float(high),
            unit="Kendall's tau, bootstrapped over prompts",
            note="supported if above 0.8",
        )
    )


def _judge(study: Study, evidence: Evidence, experiment: str, arm: str, x: float, chosen: np.ndarray) -> np.ndarray:
    """Record regret and P(eps-best) of choices ``(replications,)``; return the regrets, ``(replications,)``."""
    means = evidence.scores.mean(1)
    regret = means[chosen] - means.min()
    near = regret <= epsilon_of(evidence.scores)
    for replication, value in enumerate(regret):
        study.record(experiment, arm, replication, "simple regret", value, x)
    study.record(experiment, arm, 0, "P(eps-best)", near.mean(), x)
    return regret


def _budgets(name: str, regrets: Mapping[tuple[str, float], np.ndarray], epsilon: float, label: str) -> str:
    """Draw mean regret and P(eps-best) over budgets, a line per policy."""
    panels: dict[str, dict[str, Line]] = {"mean simple regret, nats per token": {}, "P(eps-best)": {}}
    for policy in dict.fromkeys(policy for policy, _ in regrets):
        budgets = sorted(budget for other, budget in regrets if other == policy)
        means = (
            [regrets[policy, budget].mean() for budget in budgets],
            [(regrets[policy, budget] <= epsilon).mean() for budget in budgets],
        )
        for panel, values in zip(panels.values(), means, strict=True):
            panel[policy] = Line(budgets, values, COLORS[policy], policy in DUELS)
    return draw_lines(name, f"regret over {name}", panels, label, "", 2, "x", (14.0, 4.4))


def replay_tokens(study: Study, evidence: Evidence, replications: int, seed: int) -> Choices:
    """Replay all policies with budgets of tokens; return their choices by policy and share of all tokens."""
    chosen = _choose(study, evidence, replications, seed)
    regrets = {
        (name, share): _judge(study, evidence, "tokens", name, share, choice)
        for (name, share), choice in chosen.items()
    }
    epsilon = epsilon_of(evidence.scores)
    svg = _budgets("tokens", regrets, epsilon, "share of all tokens")
    study.figures.append(Figure(svg, "Budgets of tokens; dashed: dueling bandits, which stop when they converge."))
    names = list(dict.fromkeys(name for name, _ in regrets))
    rows = [
        [name, *(f"{number(regrets[name, share].mean())}" if (name, share) in regrets else "" for share in SHARES)]
        for name in names
    ]
    study.figures.append(Table(["policy", *(f"{share:.0%}" for share in SHARES)], rows, title="Mean simple regret"))
    _claim_fraction(study, regrets, epsilon)
    _claim_values(study, regrets)
    _default(study, regrets, epsilon)
    pairing = interval(regrets[UNPAIRED, 0.1] - regrets[UNIFORM, 0.1])
    study.claims.append(
        Claim.from_interval(
            pairing,
            claim="pairing",
            statement="the same prompts for all candidates are worth more than as many different prompts for each",
            where="a question of ours",
            seeds=replications,
            unit="nats less regret at 10 % of the tokens",
        )
    )
    return chosen


def _choose(study: Study, evidence: Evidence, replications: int, seed: int) -> Choices:
    arms, prompts = evidence.scores.shape
    budgets = [max(arms, round(share * arms * prompts)) for share in SHARES]
    chosen: Choices = {}

    def table() -> ScoreTable:
        return ScoreTable(evidence.scores, replications, np.random.default_rng(seed))  # equal orders for all policies

    rng = np.random.default_rng(seed + 1)
    for share, budget in zip(SHARES, budgets, strict=True):
        policies = {
            VALUES: PairedHalving(replications, arms, prompts, budget),
            SIGNS: PairedHalving(replications, arms, prompts, budget, "signs"),
            UNIFORM: PairedHalving(replications, arms, prompts, budget, rounds=1),
        }
        for name, policy in policies.items():
            chosen[name, share] = replay_halving(policy, table(), rng)
        each = max(1, budget // arms)
        unpaired = rng.permuted(np.tile(evidence.scores, (replications, 1, 1)), axis=2)[:, :, :each]
        chosen[UNPAIRED, share] = unpaired.mean(2).argmin(1)
    for name in DUELS:
        dueling = make_dueling(name, replications, arms, arms * prompts)
        replay = table()
        recommended = replay_duels(dueling, replay, budgets[:-2], rng, "cells", most_duels=arms * prompts)
        for share, choice in zip(SHARES, recommended, strict=False):
            chosen[name, share] = choice
        study.record(
            "spent", name, 0, "share of the cells looked at in the end", replay.ledger.cells.mean() / arms / prompts
        )
    return chosen


def _claim_fraction(study: Study, regrets: Choices, epsilon: float) -> None:
    full = regrets[UNIFORM, 1.0].mean()
    at_30 = interval(regrets[VALUES, 0.3])
    study.claims.append(
        Claim(
            "fraction",
            "paired halving on 30 % of the tokens chooses as well as the full table",
            "a question of ours",
            f"simple regret {at_30} nats at 30 %, eps {number(epsilon)}, full table {number(full)}",
            "supported" if at_30.high <= epsilon else "refuted" if at_30.low > epsilon else "inconclusive",
            len(regrets[VALUES, 0.3]),
            estimate=at_30.estimate,
            low=at_30.low,
            high=at_30.high,
            unit="nats per token",
            note="supported if the mean regret is below eps",
        )
    )


def _claim_values(study: Study, regrets: Choices) -> None:
    for share in (0.1, 0.3):
        rivals = [name for name in (SIGNS, *DUELS) if (name, share) in regrets]
        gains = {name: interval(regrets[name, share] - regrets[VALUES, share]) for name in rivals}
        wins = [name for name, gain in gains.items() if gain.low > 0]
        losses = [name for name, gain in gains.items() if gain.high < 0]
        best = min(gains.items(), key=lambda entry: entry[1].estimate)
        verdict: Verdict = "refuted" if losses else "supported" if len(wins) == len(gains) else "inconclusive"
        study.claims.append(
            Claim(
                f"values-at-{share:.0%}".replace("%", "-percent"),
                f"where scores are available, paired halving on values beats signs and dueling bandits at {share:.0%}",
                "a question of ours",
                f"significantly better than {len(wins)} of {len(gains)}, worse than {len(losses)}; nearest: {best[0]}, "
                f"{best[1]} nats more regret",
                verdict,
                len(regrets[VALUES, share]),
                estimate=best[1].estimate,
                low=best[1].low,
                high=best[1].high,
                unit="nats per token, paired over orders",
            )
        )


def _default(study: Study, regrets: Mapping[tuple[str, float], np.ndarray], epsilon: float) -> None:
    """Compare the pipeline's default policy with all others at its budget."""
    default = Selection()
    policy, share = POLICIES.get(default.policy, default.policy), default.budget
    gains = {
        name: interval(regret - regrets[policy, share])
        for (name, other), regret in regrets.items()
        if other == share and name != policy
    }
    best = min(gains.items(), key=lambda entry: entry[1].low)
    study.claims.append(
        Claim(
            "default",
            f"no policy beats the default of `select_child`: {default.policy} on {share:.0%} of the tokens",
            "the pipeline's default",
            f"nearest of {len(gains)}: {best[0]}, {best[1]} nats more regret; eps {number(epsilon)}",
            "refuted" if any(g.high < 0 for g in gains.values()) else verdict_of(best[1], -epsilon),
            len(regrets[policy, share]),
            estimate=best[1].estimate,
            low=best[1].low,
            high=best[1].high,
            unit="nats per token, paired over orders",
            note="refuted if one is significantly better, supported if none is better by eps with confidence",
        )
    )


def report(study: Study, evidence: Evidence, chosen: Choices) -> None:
    """Compare the selected child with the solver's first solution on prompts that selection did not use."""
    frequencies = np.bincount(chosen[VALUES, 0.3], minlength=len(evidence.scores)) / len(chosen[VALUES, 0.3])
    selected = frequencies @ evidence.reported  # mean KL of the choices, (prompts,)
    gain = interval(evidence.reported[0] - selected)
    study.claims.append(
        Claim.from_interval(
            gain,
            claim="worth-it",
            statement="on other splits, the selected child is better than the solver's first solution",
            where="a question of ours",
            measured=f"KL {number(evidence.reported[0].mean())} to {number(float(selected.mean()))}"
            f": {gain} less; best possible {number(evidence.reported.mean(1).min())}",
            seeds=evidence.reported.shape[1],
            unit="nats per token, paired over reported prompts",
            note="paired halving at 30 %, averaged over orders; before finetuning",
        )
    )


def replay_votes(study: Study, evidence: Evidence, scale: Scale, seed: int) -> None:
    """Replay halving and dueling policies with budgets of a judge's votes."""
    arms, replications = len(evidence.scores), scale.replications
    rng = np.random.default_rng(seed + 2)
    regrets: dict[tuple[str, float], np.ndarray] = {}

    def table() -> ScoreTable:
        return ScoreTable(evidence.scores, replications, np.random.default_rng(seed), FLIP)

    for budget in scale.votes:
        for name, rounds in ((VOTED, None), (ALL_PAIRS, 1)):
            policy = RoundRobinHalving(replications, arms, budget, rounds)
            choice = replay_halving(policy, table(), rng)
            regrets[name, budget] = _judge(study, evidence, "votes", name, budget, choice)
    for name in DUELS:
        dueling = make_dueling(name, replications, arms, scale.votes[-1])
        recommended = replay_duels(dueling, table(), scale.votes, rng, "duels", most_duels=scale.votes[-1])
        for budget, choice in zip(scale.votes, recommended, strict=True):
            regrets[name, budget] = _judge(study, evidence, "votes", name, budget, choice)
    svg = _budgets("votes", regrets, epsilon_of(evidence.scores), "votes")
    study.figures.append(Figure(svg, "Budgets of a judge's votes; dashed: dueling bandits."))
    budget = scale.claimed
    gains = {name: interval(regrets[name, budget] - regrets[VOTED, budget]) for name in DUELS}
    nearest = min(gains.items(), key=lambda entry: entry[1].estimate)
    wins, losses = sum(g.low > 0 for g in gains.values()), [n for n, g in gains.items() if g.high < 0]
    study.claims.append(
        Claim(
            "votes",
            "where only votes are available, halving beats every dueling bandit: they minimize another regret",
            "a question of ours",
            f"at {budget:,} votes significantly better than {wins} of {len(gains)}, worse than {len(losses)}; nearest: "
            f"{nearest[0]}, {nearest[1]} nats more regret",
            "refuted" if losses else "supported" if wins == len(gains) else "inconclusive",
            replications,
            estimate=nearest[1].estimate,
            low=nearest[1].low,
            high=nearest[1].high,
            unit="nats per token, paired over orders",
            note=f"simulated judge, {FLIP:.0%} of the votes wrong",
        )
    )
