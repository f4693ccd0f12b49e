"""Which child is best after all? Policies replayed on a full table of children and prompts; layers ranked online.

No paper's claims: questions of ours about what duelling bandits (arXiv 1405.3396) and online ranking (arXiv 1308.6797)
are worth inside the pipeline. Every child is scored on every prompt once; then each policy chooses by replay, in many
orders of the prompts, and its choice is judged by the full table. Two kinds of cost, never mixed: tokens (a score once
computed is kept, so that a second look is free), and votes of a judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from tangram.config import Selection
from tangram.files import atomic_path
from tangram.report.document import Figure, Table
from tangram.report.style import number
from tangram.selection.best_arm import PairedHalving, RoundRobinHalving
from tangram_studies.bandits import ranking
from tangram_studies.bandits.dueling import make_dueling
from tangram_studies.bandits.environments import ScoreTable
from tangram_studies.bandits.simulation import replay_duels, replay_halving
from tangram_studies.plots import PALETTE, Line, draw_lines
from tangram_studies.study import Claim, NotReproduced, Study, Verdict, interval, verdict_of

SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)  # of all cells
VOTES = (250, 500, 1000, 2000, 4000)
VOTES_CLAIMED = 1000  # the budget that a claim is made of
LAYER_ROUNDS = 400  # calibration batches
FLIP = 0.1  # how often the simulated judge errs
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
COLORS |= {"OnlineRank": PALETTE[0], "averaging": PALETTE[1], "projected gradient": PALETTE[2]}
# What a policy of the config is called here; duelling bandits keep their names.
POLICIES = {"paired-halving": VALUES, "sign-halving": SIGNS, "uniform": UNIFORM}


@dataclass(frozen=True)
class Evidence:
    """What was measured on the models.

    Attributes:
        scores: KL of each candidate on each prompt that may be used to select, ``(candidates, prompts)``.
        reported: the same on prompts of other splits, for reporting only.
        objectives: the solver's sums of scores, ``(candidates,)``.
        prompt_tokens: tokens of a prompt.
        importance: KL of the parent to itself without each layer, on each of some prompts, ``(prompts, layers)``.
        domains: the domain of each of those prompts.
        shared: share of layer passes saved because candidates agree on their first layers.
    """

    scores: np.ndarray
    reported: np.ndarray
    objectives: np.ndarray
    prompt_tokens: int
    importance: np.ndarray
    domains: np.ndarray
    shared: float


def save_evidence(evidence: Evidence, path: str | Path) -> None:
    """Write what was measured as ``.npz``: whoever has a policy of their own can replay it."""
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in vars(evidence).items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays)


def load_evidence(path: str | Path) -> Evidence:
    """Read back what `save_evidence` wrote."""
    with np.load(path) as kept:
        arrays = {name: kept[name] for name in kept.files}
    return Evidence(**{name: array if array.ndim else array.item() for name, array in arrays.items()})


def run_study(evidence: Evidence, replications: int, seed: int) -> Study:
    """Answer the questions from what was measured.

    Args:
        evidence: scores of candidates and importance of layers.
        replications: orders of prompts.
        seed: every random number follows from it.
    """
    study = Study("selection", "Which child is best after all?", "1405.3396, 1308.6797")
    arms, prompts = evidence.scores.shape
    for name, table in (("table", evidence.scores), ("table, reported", evidence.reported)):
        for arm, row in enumerate(table):
            for prompt, value in enumerate(row):
                study.record(name, f"candidate {arm}", prompt, "kl", value)
    _table(study, evidence)
    found = _tokens(study, evidence, replications, seed)
    _reported(study, evidence, found)
    _votes(study, evidence, replications, seed)
    _layers(study, evidence, replications, seed)
    study.notes += [
        f"{arms} diverse solutions of one target, {prompts} prompts of {evidence.prompt_tokens} tokens that the parent "
        f"wrote, {replications} orders of them, candidates under other labels in each; KL(parent ‖ child) per token, "
        "before finetuning.",
        "Regret is how much larger the chosen child's KL is than the best one's, on the full table; eps-best: within "
        "one standard error of the paired difference of the best two.",
        "A pair's k-th duel is on the k-th prompt of the order, so cells are shared between pairs.",
        f"Candidates agree on their first layers: {evidence.shared:.0%} of the layer passes were saved by running "
        "shared ones once. Counted tokens do not know of it.",
        f"The judge is simulated: the lower KL on a prompt wins, and one vote in {1 / FLIP:.0f} is wrong.",
        "A layer's importance is the KL of the parent to itself without it: replace-1-block scores with nothing in its "
        "place.",
    ]
    study.not_reproduced.append(
        NotReproduced(
            "votes of the parent in the replay",
            "every child would have to write a continuation of every prompt, token by token",
            "`selection.metric: judge` under a target: `select_child` asks the parent, within a budget",
        )
    )
    return study


def epsilon_of(values: np.ndarray) -> float:
    """Return one standard error of the paired difference of the best two rows of ``(candidates, prompts)``."""
    best, second = values.mean(1).argsort()[:2]
    return float((values[best] - values[second]).std(ddof=1) / np.sqrt(values.shape[1]))


def _table(study: Study, evidence: Evidence) -> None:
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
    """Record regret and P(eps-best) of choices ``(replications,)``; return the regrets."""
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


def _tokens(study: Study, evidence: Evidence, replications: int, seed: int) -> dict[tuple[str, float], np.ndarray]:
    """Replay all policies under budgets of tokens; return their choices by policy and share."""
    arms, prompts = evidence.scores.shape
    budgets = [max(arms, round(share * arms * prompts)) for share in SHARES]
    chosen: dict[tuple[str, float], np.ndarray] = {}

    def table() -> ScoreTable:
        return ScoreTable(evidence.scores, replications, np.random.default_rng(seed))  # the same orders for all

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
        own = rng.permuted(np.tile(evidence.scores, (replications, 1, 1)), axis=2)[:, :, :each]
        chosen[UNPAIRED, share] = own.mean(2).argmin(1)
    for name in DUELS:
        dueling = make_dueling(name, replications, arms, arms * prompts)
        replay = table()
        found = replay_duels(dueling, replay, budgets[:-2], rng, "cells", most_duels=arms * prompts)
        for share, choice in zip(SHARES, found, strict=False):
            chosen[name, share] = choice
        study.record(
            "spent", name, 0, "share of the cells looked at in the end", replay.ledger.cells.mean() / arms / prompts
        )
    regrets = {
        (name, share): _judge(study, evidence, "tokens", name, share, choice)
        for (name, share), choice in chosen.items()
    }
    epsilon = epsilon_of(evidence.scores)
    svg = _budgets("tokens", regrets, epsilon, "share of all tokens")
    study.figures.append(
        Figure(svg, "Budgets of tokens; dashed: duelling bandits, which stop where they have settled.")
    )
    names = list(dict.fromkeys(name for name, _ in regrets))
    rows = [
        [name, *(f"{number(regrets[name, share].mean())}" if (name, share) in regrets else "" for share in SHARES)]
        for name in names
    ]
    study.figures.append(Table(["policy", *(f"{share:.0%}" for share in SHARES)], rows, title="Mean simple regret"))
    full = regrets[UNIFORM, 1.0].mean()
    at_30 = interval(regrets[VALUES, 0.3])
    study.claims.append(
        Claim(
            "fraction",
            "paired halving on 30 % of the tokens chooses as well as the full table",
            "a question of ours",
            f"simple regret {at_30} nats at 30 %, eps {number(epsilon)}, full table {number(full)}",
            "supported" if at_30.high <= epsilon else "refuted" if at_30.low > epsilon else "inconclusive",
            replications,
            estimate=at_30.estimate,
            low=at_30.low,
            high=at_30.high,
            unit="nats per token",
            note="supported if the mean regret is below eps",
        )
    )
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
                f"where scores can be had, paired halving on values beats signs and duelling bandits at {share:.0%}",
                "a question of ours",
                f"better beyond doubt than {len(wins)} of {len(gains)}, worse than {len(losses)}; nearest: {best[0]}, "
                f"{best[1]} nats more regret",
                verdict,
                replications,
                estimate=best[1].estimate,
                low=best[1].low,
                high=best[1].high,
                unit="nats per token, paired over orders",
            )
        )
    _default(study, regrets, epsilon)
    pairing = interval(regrets[UNPAIRED, 0.1] - regrets[UNIFORM, 0.1])
    study.claims.append(
        Claim.from_interval(
            pairing,
            claim="pairing",
            statement="the same prompts for all candidates are worth more than as many prompts of their own",
            where="a question of ours",
            seeds=replications,
            unit="nats less regret at 10 % of the tokens",
        )
    )
    return chosen


def _default(study: Study, regrets: Mapping[tuple[str, float], np.ndarray], epsilon: float) -> None:
    """The pipeline's own policy and budget against all others."""
    default = Selection()
    own, share = POLICIES.get(default.policy, default.policy), default.budget
    gains = {
        name: interval(regret - regrets[own, share])
        for (name, other), regret in regrets.items()
        if other == share and name != own
    }
    best = min(gains.items(), key=lambda entry: entry[1].low)
    study.claims.append(
        Claim(
            "default",
            f"no policy beats the default of `select_child`: {default.policy} on {share:.0%} of the tokens",
            "the pipeline's default",
            f"nearest of {len(gains)}: {best[0]}, {best[1]} nats more regret; eps {number(epsilon)}",
            "refuted" if any(g.high < 0 for g in gains.values()) else verdict_of(best[1], -epsilon),
            len(regrets[own, share]),
            estimate=best[1].estimate,
            low=best[1].low,
            high=best[1].high,
            unit="nats per token, paired over orders",
            note="refuted if one is better beyond doubt, supported if none can be by eps",
        )
    )


def _reported(study: Study, evidence: Evidence, chosen: dict[tuple[str, float], np.ndarray]) -> None:
    """What the choice is worth on prompts that nobody selected on."""
    picked = np.bincount(chosen[VALUES, 0.3], minlength=len(evidence.scores)) / len(chosen[VALUES, 0.3])
    gain = interval(evidence.reported[0] - picked @ evidence.reported)
    study.claims.append(
        Claim.from_interval(
            gain,
            claim="worth-it",
            statement="on other splits, the selected child is better than the solver's first solution",
            where="a question of ours",
            measured=f"KL {number(evidence.reported[0].mean())} to {number(float((picked @ evidence.reported).mean()))}"
            f": {gain} less; best possible {number(evidence.reported.mean(1).min())}",
            seeds=evidence.reported.shape[1],
            unit="nats per token, paired over reported prompts",
            note="paired halving at 30 %, averaged over orders; before finetuning",
        )
    )


def _votes(study: Study, evidence: Evidence, replications: int, seed: int) -> None:
    arms, _ = evidence.scores.shape
    rng = np.random.default_rng(seed + 2)
    regrets: dict[tuple[str, float], np.ndarray] = {}

    def table() -> ScoreTable:
        return ScoreTable(evidence.scores, replications, np.random.default_rng(seed), FLIP)

    for budget in VOTES:
        for name, rounds in ((VOTED, None), (ALL_PAIRS, 1)):
            policy = RoundRobinHalving(replications, arms, budget, rounds)
            choice = replay_halving(policy, table(), rng)
            regrets[name, budget] = _judge(study, evidence, "votes", name, budget, choice)
    for name in DUELS:
        dueling = make_dueling(name, replications, arms, VOTES[-1])
        found = replay_duels(dueling, table(), VOTES, rng, "duels", most_duels=VOTES[-1])
        for budget, choice in zip(VOTES, found, strict=True):
            regrets[name, budget] = _judge(study, evidence, "votes", name, budget, choice)
    svg = _budgets("votes", regrets, epsilon_of(evidence.scores), "votes")
    study.figures.append(Figure(svg, "Budgets of a judge's votes; dashed: duelling bandits."))
    budget = VOTES_CLAIMED
    gains = {name: interval(regrets[name, budget] - regrets[VOTED, budget]) for name in DUELS}
    nearest = min(gains.items(), key=lambda entry: entry[1].estimate)
    wins, losses = sum(g.low > 0 for g in gains.values()), [n for n, g in gains.items() if g.high < 0]
    study.claims.append(
        Claim(
            "votes",
            "where only votes can be had, halving beats every duelling bandit: they minimise another regret",
            "a question of ours",
            f"at {budget:,} votes better beyond doubt than {wins} of {len(gains)}, worse than {len(losses)}; nearest: "
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


# --- layers, ranked online --------------------------------------------------------------------------------------------


def calibration_batches(
    evidence: Evidence, switching: bool, rounds: int, chosen: int, rng: np.random.Generator, batch: int = 4
) -> np.ndarray:
    """Return which layers each batch names as its least important, ``(rounds, layers)`` of 0 and 1.

    Args:
        evidence: importance of layers on prompts, and the prompts' domains.
        switching: whether the domain changes every eighth of the rounds; otherwise prompts are a mix throughout.
        rounds: number of batches.
        chosen: layers named by each.
        rng: draws the prompts.
        batch: prompts per batch.
    """
    names = np.unique(evidence.domains)
    pools = [np.flatnonzero(evidence.domains == name) for name in names]
    found = np.zeros((rounds, evidence.importance.shape[1]))
    for round_ in range(rounds):
        pool = pools[(8 * round_ // rounds) % len(pools)] if switching else np.arange(len(evidence.domains))
        mean = evidence.importance[rng.choice(pool, batch, replace=False)].mean(0)
        found[round_, np.argpartition(mean, chosen)[:chosen]] = 1
    return found


def ranking_regret(policy: ranking.RankingPolicy, named: np.ndarray) -> np.ndarray:
    """Return a policy's expected regret after every round, ``(rounds, replications)``.

    Args:
        policy: fresh.
        named: the items that each round names, ``(rounds, replications, items)`` of 0 and 1.
    """
    loss, found = np.zeros(named.shape[1]), np.zeros(named.shape[:2])
    for round_, scores in enumerate(named):
        positions = policy.expected_positions()
        loss += (positions * scores).sum(1)
        policy.update(positions, scores)
        found[round_] = loss - (-np.sort(-policy.scores, 1) * np.arange(policy.items)).sum(1)
    return found


def _layers(study: Study, evidence: Evidence, replications: int, seed: int, chosen: int = 3) -> None:
    rounds, layers = LAYER_ROUNDS, evidence.importance.shape[1]
    copies = min(replications, 30)
    truth = evidence.importance.mean(0)
    rows: list[list[str]] = []
    panels: dict[str, dict[str, Line]] = {}
    shown = np.linspace(rounds / 20, rounds, 20).astype(int)
    for switching in (False, True):
        label = "domains in turn" if switching else "a mix of domains"
        rng = np.random.default_rng([seed, int(switching)])
        named = np.stack([calibration_batches(evidence, switching, rounds, chosen, rng) for _ in range(copies)], 1)
        policies: dict[str, ranking.RankingPolicy] = {
            "OnlineRank": ranking.OnlineRank(copies, layers, ranking.optimal_eta(layers, chosen, rounds)),
            "projected gradient": ranking.ProjectedGradient(
                copies, layers, ranking.gradient_eta(layers, chosen, rounds)
            ),
            "averaging": ranking.FollowTheLeader(copies, layers),
        }
        regret = {}
        panel = panels.setdefault(f"regret, {label}", {})
        for name, policy in policies.items():
            curve = ranking_regret(policy, named)[shown - 1]  # (shown, replications)
            regret[name] = curve[-1]
            band = 1.96 * curve.std(1, ddof=1) / np.sqrt(copies)
            mean = curve.mean(1)
            panel[name] = Line(shown, mean, COLORS[name], low=mean - band, high=mean + band)
            for at, values in zip(shown, curve, strict=True):
                for replication, value in enumerate(values):
                    study.record(f"layers: {label}", name, replication, "regret", value, int(at))
        tau = [kendalltau(-row, truth).statistic for row in policies["averaging"].scores]
        bound = ranking.upper_bound(layers, chosen, rounds)
        rows.append([label, *(number(regret[name].mean()) for name in policies), number(bound), number(np.mean(tau))])
        gain = interval(regret["averaging"] - regret["OnlineRank"])
        study.claims.append(
            Claim.from_interval(
                gain,
                claim="layers-switching" if switching else "layers-mix",
                statement=f"OnlineRank ranks layers with less regret than averaging, on {label}",
                where="a question of ours",
                measured=f"regret {number(regret['OnlineRank'].mean())} against {number(regret['averaging'].mean())}, "
                f"bound {number(bound)}; difference {gain}",
                seeds=copies,
                unit="positions, summed over rounds",
                note=f"{rounds} batches of 4 of {len(evidence.domains)} prompts, each naming its {chosen} least "
                f"important of {layers} layers",
            )
        )
    svg = draw_lines(
        "layers", "regret over calibration batches", panels, "calibration batches", "", 2, size=(12.0, 4.0)
    )
    caption = "Against the best fixed ranking of the batches so far; bands: 95 %."
    study.figures.append(Figure(svg, caption, "Layers ranked online: regret"))
    columns = ["batches", *policies, "OnlineRank's bound", "tau"]
    caption = (
        "Regret of the ranking shown, against the best fixed one; tau: the final order against the mean importance's. "
        "The final order is the same for all: summed votes."
    )
    study.figures.append(Table(columns, rows, title="Layers ranked online", caption=caption))
