"""Online ranking of the parent's layers by importance, from batches of calibration prompts."""

from __future__ import annotations

import numpy as np
from scipy.stats import kendalltau

from tangram.report.document import Figure, Table
from tangram.report.style import number
from tangram_studies.bandits import ranking
from tangram_studies.papers.selection.evidence import Evidence, Scale
from tangram_studies.plots import PALETTE, Line, draw_lines
from tangram_studies.study import Claim, Study, interval

COLORS = dict(zip(("OnlineRank", "averaging", "projected gradient"), PALETTE, strict=False))


def calibration_batches(
    evidence: Evidence, switching: bool, rounds: int, chosen: int, rng: np.random.Generator, batch: int = 4
) -> np.ndarray:
    """Return each batch's least important layers, ``(rounds, layers)`` of 0 and 1.

    Args:
        evidence: importance of layers on prompts, and the prompts' domains.
        switching: change the domain every eighth of the rounds; otherwise every batch mixes domains.
        rounds: number of batches.
        chosen: number of layers per batch.
        rng: generator of the draws of prompts.
        batch: prompts per batch.
    """
    names = np.unique(evidence.domains)
    pools = [np.flatnonzero(evidence.domains == name) for name in names]
    least_important = np.zeros((rounds, evidence.importance.shape[1]))
    for round_ in range(rounds):
        pool = pools[(8 * round_ // rounds) % len(pools)] if switching else np.arange(len(evidence.domains))
        mean = evidence.importance[rng.choice(pool, batch, replace=False)].mean(0)
        least_important[round_, np.argpartition(mean, chosen)[:chosen]] = 1
    return least_important


def ranking_regret(policy: ranking.RankingPolicy, batches: np.ndarray) -> np.ndarray:
    """Return a policy's expected regret after every round, ``(rounds, replications)``.

    Args:
        policy: a new policy.
        batches: the chosen items of each round, ``(rounds, replications, items)`` of 0 and 1.
    """
    loss, regret = np.zeros(batches.shape[1]), np.zeros(batches.shape[:2])
    for round_, scores in enumerate(batches):
        positions = policy.expected_positions()
        loss += (positions * scores).sum(1)
        policy.update(positions, scores)
        regret[round_] = loss - (-np.sort(-policy.scores, 1) * np.arange(policy.items)).sum(1)
    return regret


def rank_layers(study: Study, evidence: Evidence, scale: Scale, seed: int, chosen: int = 3) -> None:
    """Compare online rankings of layers with the best fixed one, on mixed and on switching domains."""
    rounds, layers = scale.layer_rounds, evidence.importance.shape[1]
    copies = min(scale.replications, 30)
    truth = evidence.importance.mean(0)
    rows: list[list[str]] = []
    panels: dict[str, dict[str, Line]] = {}
    shown = np.linspace(rounds / 20, rounds, 20).astype(int)
    for switching in (False, True):
        label = "domains in turn" if switching else "a mix of domains"
        rng = np.random.default_rng([seed, int(switching)])
        batches = np.stack([calibration_batches(evidence, switching, rounds, chosen, rng) for _ in range(copies)], 1)
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
            curve = ranking_regret(policy, batches)[shown - 1]  # (shown, replications)
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
                note=f"{rounds} batches of 4 of {len(evidence.domains)} prompts, each with its {chosen} least "
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
        "Regret of the online ranking against the best fixed one; tau: Kendall's tau of the final order and mean "
        "importance. All policies have the same final order, that of summed votes."
    )
    study.figures.append(Table(columns, rows, title="Layers ranked online", caption=caption))
