"""Reducing dueling bandits to cardinal bandits (Ailon, Karnin and Joachims 2014, arXiv 1405.3396).

The study measures the paper's 15 panels (five arm sets, three links) and its arXiv.org panel, the sensitivity to UCB's
alpha (which the figures do not state), the growth of regret, the tail bound of alpha-robust machines, and modern
baselines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from tangram.report.document import Figure, Table
from tangram.report.style import number
from tangram_studies.bandits.environments import ARXIV, LINKS, UTILITIES, Duels, preferences_of
from tangram_studies.bandits.machines import UCB
from tangram_studies.bandits.simulation import has_numba, simulate_duels
from tangram_studies.plots import PALETTE, Line, draw_lines, spread_line
from tangram_studies.study import Claim, Interval, Job, NotReproduced, Study, Verdict, interval

ALPHA = 3.0
PAPER = ("sparring", "multisbm", "doubler")
OLDER = ("interleaved-filter", "beat-the-mean")  # constants of their proofs
NARROW = {"interleaved-filter, narrow": 1.0, "beat-the-mean, narrow": 1.0}  # constants used in practice
MODERN = ("double-thompson", "rucb", "versatile-db")
ARXIV_PANEL = "arXiv.org"
NAMES = {
    "sparring": "Sparring",
    "multisbm": "MultiSBM",
    "doubler": "Doubler",
    "interleaved-filter": "interleaved filter",
    "beat-the-mean": "beat the mean",
    "interleaved-filter, narrow": "interleaved filter, narrow",
    "beat-the-mean, narrow": "beat the mean, narrow",
    "double-thompson": "D-TS",
    "rucb": "RUCB",
    "versatile-db": "Versatile-DB",
}
COLORS = dict(zip(NAMES, PALETTE, strict=False))
PANELS = [(arms, link) for link in LINKS for arms in UTILITIES]


@dataclass(frozen=True)
class Scale:
    """The size of the study.

    Attributes:
        replications: replications of the paper's and of older policies.
        few: replications of modern policies.
        longest: replications of the growth experiment.
        rounds: rounds of all panels.
        checkpoints: numbers of rounds at which regret is recorded.
        growth_powers: log2 of the rounds of the growth experiment, with and without numba.
        tail: gap, rounds and replications of the tail experiment.
    """

    replications: int
    few: int
    longest: int
    rounds: int = 32_000
    checkpoints: tuple[int, ...] = (*(2**power for power in range(6, 15)), 32_000)
    growth_powers: tuple[int, int] = (20, 17)
    tail: tuple[float, int, int] = (0.4, 10_000, 4000)


SCALES = {"small": Scale(100, 20, 24), "full": Scale(400, 100, 50)}


def panel_name(arms: str, link: str) -> str:
    """Return a panel's name."""
    return f"{link} {arms}"


ALL_PANELS = [*(panel_name(*panel) for panel in PANELS), ARXIV_PANEL]


def all_panels(replications: int, rng: np.random.Generator) -> Duels:
    """Return one environment of all 16 panels, ``replications`` rows each, in the order of `ALL_PANELS`."""
    preferences = [preferences_of(UTILITIES[arms], link) for arms, link in PANELS] + [ARXIV]
    gaps = [np.max(UTILITIES[arms]) - np.array(UTILITIES[arms]) for arms, _ in PANELS] + [ARXIV[0] - 0.5]
    rows = len(preferences) * replications
    return Duels(np.repeat(preferences, replications, 0), np.repeat(gaps, replications, 0), rows, rng)


def over_panels(differences: Mapping[str, Interval], digits: int = 2) -> tuple[Verdict, str]:
    """Return the verdict on the claim that all differences are positive, and a summary of them."""
    above = sum(difference.low > 0 for difference in differences.values())
    below = [name for name, difference in differences.items() if difference.high < 0]
    verdict: Verdict = "supported" if above == len(differences) else "refuted" if below else "inconclusive"
    least = min(differences.items(), key=lambda entry: entry[1].estimate)
    text = f"significantly above zero in {above} of {len(differences)}"
    return verdict, f"{text}{f', below in {len(below)}' if below else ''}; least: {least[1]} ({least[0]})"


class _Grid:
    """Regret on all panels by policy: arrays ``(checkpoints, panels, replications)``."""

    def __init__(self, seed: np.random.SeedSequence, scale: Scale, threads: int):
        self.regrets: dict[str, np.ndarray] = {}
        for name, child in zip(NAMES, seed.spawn(len(NAMES)), strict=True):
            count = scale.few if name in MODERN else scale.replications
            environment = all_panels(count, np.random.default_rng(child.spawn(1)[0]))
            options = {"scale": NARROW[name]} if name in NARROW else {}
            policy = name.partition(",")[0]
            curves = simulate_duels(
                policy, environment, scale.rounds, scale.checkpoints, child, "auto", threads, **options
            )
            self.regrets[name] = curves.reshape(len(scale.checkpoints), len(ALL_PANELS), count)

    def final(self, name: str, panel: str, checkpoint: int = -1) -> np.ndarray:
        """Return regret at a checkpoint, by default the last, ``(replications,)``."""
        return self.regrets[name][checkpoint, ALL_PANELS.index(panel)]

    def difference(self, worse: str, better: str, panel: str) -> Interval:
        """Return the difference of two policies' mean regret with Welch's interval, as replications are independent."""
        return welch(self.final(worse, panel), self.final(better, panel))


def welch(left: np.ndarray, right: np.ndarray) -> Interval:
    """Return the difference of the means of independent samples, ``left - right``, with its 95 % interval."""
    from scipy.stats import t, ttest_ind

    test = ttest_ind(left, right, equal_var=False)
    error = math.hypot(left.std(ddof=1) / math.sqrt(len(left)), right.std(ddof=1) / math.sqrt(len(right)))
    estimate, half = float(left.mean() - right.mean()), float(t.ppf(0.975, test.df)) * error
    return Interval(estimate, estimate - half, estimate + half)


def run_study(job: Job) -> Study:
    """Run the study for the rule."""
    study = reproduce(SCALES[job.studies.scale], job.runtime.seed, job.runtime.threads)
    study.about = f"scale {job.studies.scale}"
    return study


def reproduce(scale: Scale, seed: int, threads: int = 1) -> Study:
    """Return the finished study.

    Args:
        scale: size of the study.
        seed: seed of all random numbers.
        threads: parallel replications of compiled policies.
    """
    study = Study("dueling", "Reducing dueling bandits to cardinal bandits", "1405.3396")
    sequences = np.random.SeedSequence(seed).spawn(4)
    grid = _Grid(sequences[0], scale, threads)
    _panels(study, grid, scale)
    _alpha(study, sequences[1], scale, threads)
    _growth(study, sequences[2], scale, threads)
    _tail(study, sequences[3], scale)
    _modern(study, grid, scale.few)
    study.notes += [
        f"{scale.rounds:,} rounds as in the paper; {scale.replications} replications (the paper has 400), {scale.few} "
        "of the modern baselines; arms have shuffled labels in every replication.",
        f"The paper does not state UCB's alpha in its figures: {ALPHA:g} here, as in both public C++ replications; the "
        "sensitivity is shown.",
        "Interleaved filter and beat the mean are shown with the intervals of their proofs (4 ln(T K^2) under a root; "
        "3 gamma^2 with gamma = 1) and with narrow ones (both constants 1), which perform better; the paper does "
        "not state which its figures use.",
        "The increments of Doubler grow faster than its asymptotic law: UCB's bonus for the best arm still decreases.",
        "Regret is the mean of both arms' (the paper's), half of what some later papers count.",
    ]
    study.not_reproduced += [
        NotReproduced(
            "infinitely many arms (Doubler over a linear bandit)",
            "the theorem has no experiment in the paper",
            "pass `Doubler` a machine with `advance`, `feedback` and `reset`",
        ),
        NotReproduced(
            "the constants of theorem 2 (MultiSBM)",
            "the full text could not be read: only orders of growth are tested",
            "compare the last figure with the theorem",
        ),
    ]
    return study


def _panels(study: Study, grid: _Grid, scale: Scale) -> None:
    replications = scale.replications
    for panel in ALL_PANELS:
        for name in NAMES:
            for checkpoint, rounds in enumerate(scale.checkpoints):
                study.record(panel, NAMES[name], 0, "mean regret", grid.final(name, panel, checkpoint).mean(), rounds)
            for replication, value in enumerate(grid.final(name, panel)):
                study.record(panel, NAMES[name], replication, "regret", value, scale.rounds)
    synthetic = ALL_PANELS[:-1]
    first = {panel: grid.difference("multisbm", "sparring", panel) for panel in synthetic}
    second = {panel: grid.difference("doubler", "multisbm", panel) for panel in synthetic}
    for claim, statement, differences in (
        ("sparring-first", "Sparring has less regret than MultiSBM on all 15 panels", first),
        ("multisbm-second", "MultiSBM has less regret than Doubler on all 15 panels", second),
        *(
            (
                f"sparring-beats-{older.replace(', ', '-')}",
                f"Sparring has less regret than {NAMES[older]} on all 15 panels",
                {panel: grid.difference(older, "sparring", panel) for panel in synthetic},
            )
            for older in (*OLDER, *NARROW)
        ),
    ):
        verdict, text = over_panels(differences)
        least = min(differences.values(), key=lambda interval: interval.estimate)
        study.claims.append(
            Claim(
                claim,
                statement,
                "section 6, figure 1",
                text,
                verdict,
                replications,
                estimate=least.estimate,
                low=least.low,
                high=least.high,
                unit="regret, the panel with the least",
                note=f"after {scale.rounds:,} rounds",
            )
        )
    for other in ("multisbm", "doubler", *OLDER, *NARROW):
        study.claims.append(
            Claim.from_interval(
                grid.difference(other, "sparring", ARXIV_PANEL),
                claim=f"arxiv-{other.replace(', ', '-')}",
                statement=f"on the arXiv.org matrix, Sparring has less regret than {NAMES[other]}",
                where="section 6, the last panel",
                seeds=replications,
                unit="regret",
            )
        )
    _draw_panels(study, grid, scale)


def _draw_panels(study: Study, grid: _Grid, scale: Scale) -> None:
    lines = {
        panel: {
            NAMES[name]: spread_line(
                scale.checkpoints, grid.regrets[name][:, ALL_PANELS.index(panel)], COLORS[name], name not in PAPER
            )
            for name in NAMES
        }
        for panel in ALL_PANELS
    }
    right = ALL_PANELS[3::4]  # only the last column has room for names
    svg = draw_lines("panels", "regret, 16 panels", lines, "rounds", "regret", 4, "x", (16.0, 2.7), right)
    study.figures.append(
        Figure(svg, "Mean cumulative regret over rounds, bands of one standard deviation; dashed: not of this paper.")
    )


def _alpha(study: Study, seed: np.random.SeedSequence, scale: Scale, threads: int) -> None:
    replications, rounds = scale.replications, scale.rounds
    values = (0.5, 1.0, 2.0, 3.0)
    means: dict[str, list[float]] = {name: [] for name in PAPER}
    differences: dict[str, Interval] = {}
    for alpha, child in zip(values, seed.spawn(len(values)), strict=True):
        regrets = {}
        for name, sequence in zip(PAPER, child.spawn(len(PAPER)), strict=True):
            rng = np.random.default_rng(sequence.spawn(1)[0])
            environment = Duels.of_utilities(UTILITIES["arith"], "linear", replications, rng)
            curve = simulate_duels(name, environment, rounds, [rounds], sequence, threads=threads, alpha=alpha)
            regrets[name] = curve[-1]
            means[name].append(float(regrets[name].mean()))
            study.record("alpha", NAMES[name], 0, "mean regret", means[name][-1], alpha)
        differences[f"alpha {alpha:g}: MultiSBM over Sparring"] = welch(regrets["multisbm"], regrets["sparring"])
        differences[f"alpha {alpha:g}: Doubler over MultiSBM"] = welch(regrets["doubler"], regrets["multisbm"])
    verdict, text = over_panels(differences)
    least = min(differences.values(), key=lambda interval: interval.estimate)
    study.claims.append(
        Claim(
            "alpha",
            "the order does not depend on UCB's alpha",
            "section 6 leaves alpha open",
            text,
            verdict,
            replications,
            estimate=least.estimate,
            low=least.low,
            high=least.high,
            unit="regret, the least difference",
            note="linear arith; a question of ours",
        )
    )
    lines = {"linear arith": {NAMES[name]: Line(values, means[name], COLORS[name]) for name in PAPER}}
    svg = draw_lines(
        "alpha", "regret over alpha", lines, "alpha", f"regret after {scale.rounds:,} rounds", 1, "", (7.0, 3.2)
    )
    study.figures.append(
        Figure(svg, "Sensitivity to UCB's alpha: less exploration is better here, the order does not change.")
    )


def _growth(study: Study, seed: np.random.SeedSequence, scale: Scale, threads: int) -> None:
    """Measure the ratio of regret increments over two factors of 8 in rounds: 1 for ln T, 1.19 for its square."""
    replications, last = scale.longest, scale.growth_powers[not has_numba()]
    powers = list(range(max(1, last - 12), last + 1))
    spread = (last - 6, last - 3, last)
    expected = {
        power: (spread[2] ** power - spread[1] ** power) / (spread[1] ** power - spread[0] ** power)
        for power in (1, 2, 3)
    }
    laws = {"sparring": 1, "multisbm": 1, "doubler": 2}
    lines = {}
    for (name, power), child in zip(laws.items(), seed.spawn(len(laws)), strict=True):
        rng = np.random.default_rng(child.spawn(1)[0])
        environment = Duels.of_utilities(UTILITIES["1good"], "linear", replications, rng)
        points = [2**p for p in powers]
        curves = simulate_duels(name, environment, points[-1], points, child, threads=threads, alpha=ALPHA)
        low, middle, high = (curves[powers.index(p)] for p in spread)
        # Jackknife of the ratio of means: single replications' increments are too noisy to divide.
        ratio = jackknife_ratio(high - middle, middle - low)
        for replication, value in enumerate(curves[-1]):
            study.record("growth", NAMES[name], replication, "regret", value, points[-1])
        limit, law = expected[power + 1], "ln T" if power == 1 else "ln^2 T"
        verdict: Verdict = "supported" if ratio.high < limit else "refuted" if ratio.low > limit else "inconclusive"
        where = {"sparring": "conjecture, section 5", "multisbm": "theorem 2", "doubler": "theorem 1"}[name]
        study.claims.append(
            Claim(
                f"growth-{name}",
                f"{NAMES[name]}'s regret grows like {law}" + (" (conjectured)" if name == "sparring" else ""),
                where,
                f"increments from 2^{spread[0]} to 2^{spread[1]} to 2^{spread[2]} grow by a factor of {ratio}",
                verdict,
                replications,
                paper_value=f"{number(expected[power])} for {law}",
                estimate=ratio.estimate,
                low=ratio.low,
                high=ratio.high,
                unit="ratio of increments",
                note=f"supported if slower than the next power of ln T ({number(limit)}); linear 1good",
            )
        )
        lines[NAMES[name]] = spread_line(points, curves, COLORS[name])
    svg = draw_lines(
        "growth", "regret to a million rounds", {"linear 1good": lines}, "rounds", "regret", 1, "x", (8.0, 3.6)
    )
    study.figures.append(Figure(svg, "On this axis ln T is a straight line and its square is curved."))


def jackknife_ratio(numerator: np.ndarray, denominator: np.ndarray) -> Interval:
    """Return the ratio of two paired samples' means with its 95 % interval."""
    n = len(numerator)
    ratio = numerator.mean() / denominator.mean()
    left_out = (numerator.sum() - numerator) / (denominator.sum() - denominator)
    pseudo = interval(n * ratio - (n - 1) * left_out)
    return Interval(float(ratio), pseudo.low + ratio - pseudo.estimate, pseudo.high + ratio - pseudo.estimate)


def _tail(study: Study, seed: np.random.SeedSequence, scale: Scale) -> None:
    """Count the replications in which UCB exceeds the limit of suboptimal plays (definition of alpha-robust)."""
    gap, horizon, copies = scale.tail
    rows: list[list[str]] = []
    for alpha, child in zip((1.0, 2.0, 3.0), seed.spawn(3), strict=True):
        rng, machine = np.random.default_rng(child), UCB(copies, 2, alpha=alpha)
        means = np.array([0.7, 0.7 - gap])
        for _ in range(horizon):
            arm = machine.advance(rng)
            machine.feedback(arm, rng.random(copies) < means[arm])
        plays = machine.counts[:, 0, 1]
        limit = 4 * alpha * gap**-2 * math.log(horizon)
        bound = 2 / alpha * (limit / 2) ** -alpha
        violations = int((plays > limit).sum())
        high = float(beta.ppf(0.975, violations + 1, copies - violations))
        low = float(beta.ppf(0.025, violations, copies - violations + 1)) if violations else 0.0
        study.record("tail", f"alpha {alpha:g}", 0, "share above the limit", violations / copies, limit)
        rows.append([f"{alpha:g}", f"{limit:.0f}", f"{plays.max():.0f}", f"{violations} of {copies}", number(bound)])
        if alpha == 1:
            verdict: Verdict = "supported" if high < bound else "refuted" if low > bound else "inconclusive"
            study.claims.append(
                Claim(
                    "alpha-robust",
                    "UCB plays a suboptimal arm more than s >= 4 alpha gap^-2 ln T times with probability below "
                    "(2 / alpha)(s / 2)^-alpha",
                    "definition of alpha-robust, section 4",
                    f"{violations} of {copies} at s = {limit:.0f}; at most {number(high)} with 97.5 % confidence",
                    verdict,
                    copies,
                    paper_value=f"below {number(bound)}",
                    estimate=violations / copies,
                    low=low,
                    high=high,
                    unit="share of replications",
                    note="alpha = 1; the bounds for 2 and 3 are too small for this number of replications",
                )
            )
    columns = ["alpha", "s", "most plays", "above s", "bound"]
    study.figures.append(
        Table(columns, rows, title="How often UCB exceeds the limit", caption=f"Gap {gap:g}, {horizon:,} rounds.")
    )


def _modern(study: Study, grid: _Grid, few: int) -> None:
    for name in MODERN:
        differences = {panel: grid.difference(name, "sparring", panel) for panel in ALL_PANELS}
        verdict, text = over_panels(differences)
        ratios = [grid.final("sparring", panel).mean() / grid.final(name, panel).mean() for panel in ALL_PANELS]
        least = min(differences.values(), key=lambda interval: interval.estimate)
        study.claims.append(
            Claim(
                f"modern-{name}",
                f"Sparring over UCB({ALPHA:g}) still has less regret than {NAMES[name]}, on all 16 panels",
                "not of this paper: a later baseline",
                f"{text}; Sparring's regret is {min(ratios):.1f} to {max(ratios):.1f} times as large",
                verdict,
                few,
                estimate=least.estimate,
                low=least.low,
                high=least.high,
                unit="regret, the panel with the least",
                note="a question of ours",
            )
        )
