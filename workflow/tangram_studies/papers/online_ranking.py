"""Online ranking (Ailon 2014, arXiv 1308.6797): OnlineRank compared with its bounds and with other algorithms.

The abstract claims regret O(n^{3/2} sqrt(T k)) with a matching lower bound in O(n log n) a round; the published version
claims O(n sqrt(OPT) + n^2). Constants are derived here from the decomposition into pairs (`bandits/ranking.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tangram.report.document import Figure, Table
from tangram.report.style import number
from tangram_studies.bandits import ranking
from tangram_studies.bandits.simulation import run_ranking
from tangram_studies.plots import PALETTE, Line, draw_lines
from tangram_studies.study import Claim, Interval, Job, NotReproduced, Study, interval


@dataclass(frozen=True)
class Scale:
    """The size of the study: replications of each experiment (``few`` for slow policies), and rounds."""

    bounds: int
    few: int
    chosen: int
    samplers: int
    small_loss: int
    repeats: int
    settings: tuple[tuple[int, int, int], ...] = ((10, 1, 2000), (20, 1, 2000), (20, 4, 2000), (40, 1, 4000))
    chosen_rounds: int = 1000
    sampler_rounds: int = 300
    small_loss_rounds: int = 2000


SCALES = {"small": Scale(40, 5, 30, 100, 40, 3), "full": Scale(200, 40, 100, 400, 100, 5)}
SEQUENCES = ("iid", "zipf", "drift", "round-robin")
ONLINE_RANK, GRADIENT, PERTURBED, LEADER, PERMELEARN = (
    "OnlineRank",
    "projected gradient",
    "perturbed leader",
    "follow the leader",
    "PermELearn",
)
COLORS = dict(zip((ONLINE_RANK, GRADIENT, PERTURBED, LEADER, PERMELEARN), PALETTE, strict=False))


def make_policy(name: str, replications: int, items: int, chosen: int, rounds: int) -> ranking.RankingPolicy:
    """Return a policy with the learning rate that minimizes its regret bound.

    Raises:
        ValueError: the name is unknown.
    """
    if name == ONLINE_RANK:
        return ranking.OnlineRank(replications, items, ranking.optimal_eta(items, chosen, rounds))
    if name == GRADIENT:
        return ranking.ProjectedGradient(replications, items, ranking.gradient_eta(items, chosen, rounds))
    if name == PERTURBED:  # Kalai and Vempala: diameter n^2 / 2, feedback of 1-norm k, losses to k n
        return ranking.PerturbedLeader(
            replications, items, math.sqrt(chosen * chosen * items * rounds / (items**2 / 2))
        )
    if name == LEADER:
        return ranking.FollowTheLeader(replications, items)
    if name == PERMELEARN:  # losses in [0, 1] after division by the largest
        scale = sum(items - 1 - i for i in range(chosen))
        eta = math.sqrt(2 * items * math.log(items) / rounds)
        return ranking.PermELearn(replications, items, eta, scale)
    raise ValueError(f"no policy is called '{name}'")


def regret_of(name: str, setting: tuple[int, int, int], sequence: str, replications: int, seed: int) -> np.ndarray:
    """Return the expected regret on each replication's sequence, ``(replications,)``."""
    items, chosen, rounds = setting
    policy = make_policy(name, replications, items, chosen, rounds)
    loss, best = run_ranking(policy, sequence, chosen, rounds, np.random.default_rng(seed))
    return loss - best


def run_study(job: Job) -> Study:
    """Run the study for the rule."""
    study = reproduce(SCALES[job.studies.scale], job.runtime.seed)
    study.about = f"scale {job.studies.scale}"
    return study


def reproduce(scale: Scale, seed: int) -> Study:
    """Return the finished study; ``seed`` determines all random numbers."""
    study = Study(
        "online_ranking", "Online ranking: discrete choice, Spearman correlation and other feedback", "1308.6797"
    )
    _bounds(study, seed, scale)
    _chosen(study, seed, scale.chosen, scale.chosen_rounds)
    _samplers(study, seed, scale.samplers, scale.sampler_rounds)
    _small_loss(study, seed, scale.small_loss, scale.small_loss_rounds)
    _rounds_per_second(study, scale.repeats)
    study.notes += [
        "Losses are expected losses: the exact mean replaces each round's positions, so that only the sequences are "
        "random. A separate experiment compares the samplers.",
        "We derived the constants of all bounds: Hedge on every pair of items.",
        "Regret is against the best fixed ranking in hindsight. Every policy has the rate that minimizes its bound.",
    ]
    study.not_reproduced.append(
        NotReproduced(
            "Spearman correlation and other feedback",
            "they reduce to the same loss, linear in positions",
            "pass such scores to `OnlineRank.update`",
        )
    )
    return study


@dataclass
class _Regrets:
    """Mean regrets by policy, sequence and setting; OnlineRank's regret relative to its bounds; rows of the table."""

    means: dict[tuple[str, str, tuple[int, int, int]], float]
    below_upper: dict[str, Interval]
    over_lower: list[Interval]
    rows: list[list[str]]


def _measure_regrets(study: Study, seed: int, scale: Scale) -> _Regrets:
    regrets = _Regrets({}, {}, [], [])
    for setting in scale.settings:
        items, chosen, rounds = setting
        upper, lower = ranking.upper_bound(*setting), ranking.lower_bound(*setting)
        for sequence in SEQUENCES:
            names = [ONLINE_RANK, GRADIENT, PERTURBED, LEADER] + [PERMELEARN] * (items == 10)
            label = f"n {items}, k {chosen}, T {rounds}, {sequence}"
            cells = []
            for name in names:
                count = scale.few if name in (GRADIENT, PERMELEARN) else scale.bounds
                count = 2 if sequence == "round-robin" else count  # the sequence is deterministic
                regret = regret_of(name, setting, sequence, count, seed)
                for replication, value in enumerate(regret):
                    study.record(f"bounds: {label}", name, replication, "regret", value)
                regrets.means[name, sequence, setting] = float(regret.mean())
                cells.append(number(regret.mean(), 4))
                if name == ONLINE_RANK:
                    spread = interval(regret) if sequence != "round-robin" else Interval(*[float(regret[0])] * 3)
                    below = Interval(upper - spread.estimate, upper - spread.high, upper - spread.low)
                    regrets.below_upper[label] = below
                    if sequence == "iid":
                        regrets.over_lower.append(interval(regret / lower))
            cells += [""] * (5 - len(cells))
            bounds = [number(upper, 4), number(lower, 4)]
            regrets.rows.append([f"{items}", f"{chosen}", f"{rounds:,}", sequence, *bounds, *cells])
    return regrets


def _bounds(study: Study, seed: int, scale: Scale) -> None:
    """Compare regret with its bounds and with that of other policies on the same sequences."""
    regrets = _measure_regrets(study, seed, scale)
    study.claims += [
        _upper_bound(regrets.below_upper, scale.bounds),
        _lower_bound(regrets.over_lower, scale.bounds),
        _leader_fails(regrets, scale),
        _against_gradient(regrets, scale),
    ]
    columns = ["n", "k", "T", "sequence", "upper bound", "lower bound", "OnlineRank", "gradient", "perturbed", "leader"]
    table = Table([*columns, "PermELearn"], regrets.rows, labels=4, title="Regret and bounds")
    study.figures.append(table)


def _upper_bound(below: dict[str, Interval], replications: int) -> Claim:
    count = sum(margin.low > 0 for margin in below.values())
    least = min(below.items(), key=lambda entry: entry[1].estimate)
    return Claim(
        "upper-bound",
        "OnlineRank's regret is O(n^{3/2} sqrt(T k))",
        "abstract, theorem 1",
        f"below (1/2) sqrt(n (n-1) k (n-k) T ln 2) in {count} of {len(below)}, by {least[1]} or more ({least[0]})",
        "supported" if count == len(below) else "refuted",
        replications,
        estimate=least[1].estimate,
        low=least[1].low,
        high=least[1].high,
        unit="regret below the bound",
        note="the constant is ours",
    )


def _lower_bound(over: list[Interval], replications: int) -> Claim:
    near = all(ratio.low > 0.98 and ratio.high < 1.02 for ratio in over)
    far = any(ratio.high < 0.98 or ratio.low > 1.02 for ratio in over)
    furthest = max(over, key=lambda ratio: abs(ratio.estimate - 1))
    return Claim(
        "lower-bound",
        "the bound is tight: on uniform random subsets every policy has this regret",
        "matching lower bound",
        f"measured over (1/2) sqrt(n (n-1) k (n-k) T / pi): {', '.join(str(ratio) for ratio in over)}",
        "supported" if near else "refuted" if far else "inconclusive",
        replications,
        paper_value="within 2 %",
        estimate=furthest.estimate,
        low=furthest.low,
        high=furthest.high,
        unit="ratio to the formula, the furthest setting",
        note="the formula is ours, for many rounds; upper and lower bound differ by sqrt(pi ln 2) = 1.476",
    )


def _leader_fails(regrets: _Regrets, scale: Scale) -> Claim:
    failed = min(regrets.means[LEADER, "round-robin", setting] / setting[2] for setting in scale.settings)
    return Claim(
        "leader-fails",
        "without randomness regret is linear",
        "the reason for the noise",
        f"follow the leader: regret of {number(failed)} or more a round against round-robin, in every setting",
        "supported" if failed > 1 else "refuted",
        1,
        estimate=failed,
        unit="regret per round",
        note="a deterministic adversary",
    )


def _against_gradient(regrets: _Regrets, scale: Scale) -> Claim:
    ratios = {
        (sequence, setting): regrets.means[GRADIENT, sequence, setting] / regrets.means[ONLINE_RANK, sequence, setting]
        for setting in scale.settings
        for sequence in SEQUENCES
    }
    gains = [ratio for (sequence, _), ratio in ratios.items() if sequence != "iid"]  # on iid all are equal
    higher = sum(
        regrets.means[GRADIENT, sequence, setting] > regrets.means[ONLINE_RANK, sequence, setting] * 1.02
        for sequence, setting in ratios
    )
    bounds = ranking.gradient_bound(40, 1, 1) / ranking.upper_bound(40, 1, 1)
    return Claim(
        "gradient",
        "OnlineRank has no more regret than projected gradient descent on the permutahedron",
        "not of this paper: a baseline with a better constant",
        f"projected gradient's regret over OnlineRank's off iid: {number(min(gains))} to {number(max(gains))}; "
        f"higher in {higher} of 16",
        "refuted" if max(gains) < 1 else "supported" if min(gains) > 1 else "inconclusive",
        scale.few,
        paper_value="-",
        estimate=float(np.median(gains)),
        unit="ratio of regrets, median",
        note=f"ours; the bounds' ratio is {number(bounds)} for n = 40; a ranking takes O(n^2) to draw",
    )


def _chosen(study: Study, seed: int, replications: int, rounds: int) -> None:
    """Measure regret over the number k of chosen items; the paper improves an earlier analysis by sqrt(k)."""
    items, counts = 20, (1, 2, 4, 8)
    lines: dict[str, Line] = {}
    means = {}
    for name in (ONLINE_RANK, PERTURBED):
        regrets = [regret_of(name, (items, k, rounds), "zipf", replications, seed) for k in counts]
        for k, values in zip(counts, regrets, strict=True):
            for replication, value in enumerate(values):
                study.record("chosen", name, replication, "regret", value, k)
        means[name] = regrets
        lines[name] = Line(counts, [v.mean() for v in regrets], COLORS[name])
    lines["upper bound"] = Line(counts, [ranking.upper_bound(items, k, rounds) for k in counts], PALETTE[7], True)
    growth = interval(np.log(means[ONLINE_RANK][-1] / means[ONLINE_RANK][0]) / math.log(8))
    growth_perturbed = interval(np.log(means[PERTURBED][-1] / means[PERTURBED][0]) / math.log(8))
    study.claims.append(
        Claim(
            "sqrt-k",
            "OnlineRank's regret grows like sqrt(k): a factor sqrt(k) less than follow the perturbed leader's analysis",
            "abstract",
            f"regret grows like k to the power {growth}; perturbed leader {growth_perturbed}",
            "supported" if growth.high <= 0.5 + 1e-9 else "refuted" if growth.low > 0.5 else "inconclusive",
            replications,
            paper_value="at most 0.5",
            estimate=growth.estimate,
            low=growth.low,
            high=growth.high,
            unit="exponent of k from 1 to 8",
            note=f"n = {items}, T = {rounds:,}, zipf choices",
        )
    )
    svg = draw_lines(
        "chosen", "regret over k", {"n = 20, zipf": lines}, "items chosen per round, k", "regret", 1, "xy", (7, 3.4)
    )
    study.figures.append(Figure(svg, "Regret over the number of items chosen in a round."))


def _samplers(study: Study, seed: int, replications: int, rounds: int) -> None:
    """Compare the losses of both samplers with expected losses."""
    items = 10
    losses = {}
    for sampler in ("gumbel", "quicksort"):
        policy = ranking.OnlineRank(replications, items, ranking.optimal_eta(items, 1, rounds), sampler)
        loss, _ = run_ranking(policy, "zipf", 1, rounds, np.random.default_rng(seed), sampled=True)
        losses[sampler] = loss
        for replication, value in enumerate(loss):
            study.record("samplers", sampler, replication, "loss", value)
    policy = ranking.OnlineRank(replications, items, ranking.optimal_eta(items, 1, rounds))
    expected, _ = run_ranking(policy, "zipf", 1, rounds, np.random.default_rng(seed))
    for sampler, loss in losses.items():
        difference = interval((loss - expected) / expected)
        inside = difference.low <= 0 <= difference.high or abs(difference.estimate) < 0.005
        study.claims.append(
            Claim(
                f"sampler-{sampler}",
                "noisy QuickSort and Plackett-Luce draws have the same expected loss: pairs are all that counts",
                "section 3",
                f"drawn over expected loss, less 1: {difference}",
                "supported" if inside else "refuted",
                replications,
                paper_value="0",
                estimate=difference.estimate,
                low=difference.low,
                high=difference.high,
                unit="relative difference",
                note="supported if the interval holds 0 or the difference is below 0.5 %",
            )
        )


def _small_loss(study: Study, seed: int, replications: int, rounds: int) -> None:
    """Measure regret where a good ranking exists: one item is chosen except in a share of the rounds."""
    items = 20
    shares, best_losses, regrets, margins = (0.02, 0.05, 0.1, 0.2, 0.5), [], [], []
    for index, share in enumerate(shares):
        rng = np.random.default_rng([seed, index])
        chosen = np.where(
            rng.random((rounds, replications)) < share, rng.integers(items, size=(rounds, replications)), 0
        )
        scores = np.eye(items)
        counts = scores[chosen].sum(0)
        best = (-np.sort(-counts, 1) * np.arange(items)).sum(1)
        policy = ranking.OnlineRank(replications, items, ranking.small_loss_eta(items, float(best.mean())))
        loss = np.zeros(replications)
        for row in chosen:
            loss += policy.expected_positions()[np.arange(replications), row]
            policy.update(scores[row], scores[row])
        regret = interval(loss - best)
        bound = ranking.small_loss_bound(items, float(best.mean()))
        for replication, value in enumerate(loss - best):
            study.record("small loss", ONLINE_RANK, replication, "regret", value, float(best.mean()))
        best_losses.append(float(best.mean()))
        regrets.append(regret)
        margins.append(Interval(bound - regret.estimate, bound - regret.high, bound - regret.low))
    below = sum(margin.low > 0 for margin in margins)
    closest = min(margins, key=lambda margin: margin.estimate)
    study.claims.append(
        Claim(
            "small-loss",
            "regret is O(n sqrt(OPT) + n^2), OPT the loss of the best ranking",
            "published abstract (AISTATS)",
            f"below our bound in {below} of {len(margins)}: regret {', '.join(number(r.estimate) for r in regrets)} "
            f"at OPT {', '.join(number(b) for b in best_losses)}",
            "supported" if below == len(margins) else "refuted",
            replications,
            estimate=closest.estimate,
            low=closest.low,
            high=closest.high,
            unit="regret below the bound, the closest",
            note=f"n = {items}, T = {rounds:,}; the rate knows OPT; constants are ours",
        )
    )
    lines = {
        ONLINE_RANK: Line(best_losses, [regret.estimate for regret in regrets], COLORS[ONLINE_RANK]),
        "small-loss bound": Line(
            best_losses, [ranking.small_loss_bound(items, b) for b in best_losses], PALETTE[7], True
        ),
        "bound without OPT": Line(best_losses, [ranking.upper_bound(items, 1, rounds)] * len(shares), PALETTE[1], True),
    }
    svg = draw_lines(
        "small-loss", "regret over OPT", {f"n = {items}, T = {rounds:,}": lines}, "OPT", "regret", 1, "xy", (7.5, 3.4)
    )
    study.figures.append(Figure(svg, "Regret decreases with the loss of the best ranking."))


def seconds_per_round(policy: ranking.RankingPolicy, repeats: int, at_least: float = 0.02) -> np.ndarray:
    """Return seconds of one round (draw a ranking, take scores), ``(repeats,)``."""
    rng = np.random.default_rng(0)
    scores = rng.random((1, policy.items))
    seconds = []

    def round_() -> None:
        policy.update(policy.select(rng), scores)

    round_()
    for _ in range(repeats):
        start, rounds = time.perf_counter(), 0
        while time.perf_counter() - start < at_least:
            round_()
            rounds += 1
        seconds.append((time.perf_counter() - start) / rounds)
    return np.array(seconds)


def _rounds_per_second(study: Study, repeats: int) -> None:
    kinds: dict[str, tuple[list[int], Callable[[int], ranking.RankingPolicy]]] = {
        ONLINE_RANK: ([2**p for p in range(6, 17)], lambda n: ranking.OnlineRank(1, n, 0.1)),
        GRADIENT: ([2**p for p in range(4, 11)], lambda n: ranking.ProjectedGradient(1, n, 0.1)),
        PERMELEARN: ([2**p for p in range(2, 7)], lambda n: ranking.PermELearn(1, n, 0.1, n)),
    }
    lines = {}
    slopes: dict[str, Interval] = {}
    for name, (sizes, make) in kinds.items():
        seconds = np.array([seconds_per_round(make(n), repeats) for n in sizes])  # (sizes, repeats)
        for n, row in zip(sizes, seconds, strict=True):
            for repeat, value in enumerate(row):
                study.record("seconds", name, repeat, "seconds per round", value, n)
        lines[name] = Line(sizes, np.median(seconds, 1), COLORS[name])
        last = 5 if name == ONLINE_RANK else 3
        logs = np.log(sizes[-last:])
        slopes[name] = interval([np.polyfit(logs, np.log(seconds[-last:, r]), 1)[0] for r in range(repeats)])
    slope = slopes[ONLINE_RANK]
    study.claims.append(
        Claim(
            "time",
            "a round takes O(n log n), where earlier algorithms take O(n^2)",
            "abstract",
            f"seconds grow like n to the power {slope} from n = 4,096 to 65,536; n log n would be 1.1; "
            f"projected gradient {slopes[GRADIENT]}, PermELearn {slopes[PERMELEARN]}",
            "supported" if slope.high < 1.5 else "refuted" if slope.low > 1.5 else "inconclusive",
            repeats,
            paper_value="n log n",
            estimate=slope.estimate,
            low=slope.low,
            high=slope.high,
            unit="exponent of n",
            note="supported if nearer to n log n than to n^2; the Plackett-Luce sampler",
        )
    )
    svg = draw_lines(
        "seconds", "seconds per round over n", {"one round": lines}, "items", "seconds", 1, "xy", (7.5, 3.4)
    )
    study.figures.append(Figure(svg, "Seconds of one round: draw a ranking and take scores."))
