"""Can the sum of scores be better? Interactions of neighbors, calibrated weights, and exact scores of a shortlist.

None of this is in the paper. Every arm solves the same problem (scores of one draw of text, one limit) with another
objective, and its child's true KL is compared with that of the plain sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import coo_array

from tangram.blocks.architecture import Architecture, LayerChoice, from_json
from tangram.blocks.base import KINDS, NO_OP, PARENT
from tangram.errors import TangramError
from tangram.report.document import Table
from tangram.search.problem import Option, Problem
from tangram.search.solve import solve
from tangram_studies.papers.puzzle import laboratory
from tangram_studies.papers.puzzle.common import BASE, Bench, add_claim, record_child
from tangram_studies.papers.puzzle.laboratory import Lab
from tangram_studies.papers.puzzle.searches import MIP
from tangram_studies.papers.puzzle.space import SEARCH, Space, plain
from tangram_studies.study import Study, interval

NEIGHBORS, DISCOUNT, CALIBRATED, SHORTLIST, MORE_TEXT = (
    "terms of neighboring subblocks",
    "one discount within a layer",
    "weights per layer, fitted to children",
    "best of a shortlist by exact KL",
    "scores of all draws of text",
)
SHORTLISTED = 6
RANDOM = 8  # random children, to which, with the shortlist, weights per layer are fitted
RIDGE = 1.0
Place = tuple[int, str]  # of a subblock: layer and kind


def kl_of(lab: Lab, architecture: Mapping[str, Any], text: str) -> float:
    """Return a child's KL on a text that scores are measured on."""
    child = laboratory.model_of(lab, architecture, BASE)
    values = laboratory.metrics_of(lab, child, text, laboratory.first_changed(architecture))["kl"]
    return sum(values) / len(values)


def exact(bench: Bench, children: Sequence[tuple[Architecture, int]], label: str) -> np.ndarray:
    """Return the true KL of children, each on a draw of score text, ``(children,)``."""
    tasks = [{"lab": bench.lab, "architecture": plain(child), "text": f"score-{seed}"} for child, seed in children]
    return np.array(bench.work.run(kl_of, tasks, label))


def neighbors(layers: int) -> Iterator[tuple[Place, Place]]:
    """Yield the pairs of subblocks of which one follows the other."""
    places = [(layer, kind) for layer in range(layers) for kind in KINDS]
    yield from itertools.pairwise(places)


def changed(parent: Architecture, variants: Mapping[Place, str]) -> Architecture:
    """Return the parent with some subblocks replaced."""
    layers = list(parent.layers)
    for (layer, kind), variant in variants.items():
        values: dict[str, Any] = {kind: variant}
        layers[layer] = replace(layers[layer], **values)
    return replace(parent, layers=tuple(layers))


def interactions(bench: Bench, seed: int) -> dict[tuple[Place, Place], float]:
    """Return c of every two neighbors without both: KL = s + t + c·√(s·t), where s and t are the scores of either."""
    problem = bench.space.problem(1.0, seed)
    pairs = list(neighbors(bench.lab.layers))
    children = [changed(problem.parent, dict.fromkeys(pair, NO_OP)) for pair in pairs]
    both = exact(bench, [(child, seed) for child in children], "pairs of neighbors")
    found = {}
    for pair, value in zip(pairs, both, strict=True):
        s, t = (max(score_of(problem, place, NO_OP), 1e-6) for place in pair)
        found[pair] = float(np.clip((value - s - t) / np.sqrt(s * t), -1, 2))
    return found


def score_of(problem: Problem, place: Place, variant: str) -> float:
    """Return the score of one piece."""
    layer, kind = place
    values: dict[str, Any] = {kind: variant}
    return problem.option(layer, LayerChoice(**values)).score


def with_discount(problem: Problem, factor: float) -> Problem:
    """Return the problem in which a layer's two scores count less if both subblocks are replaced."""

    def discounted(option: Option) -> Option:
        both = isinstance(option.choice, LayerChoice) and PARENT not in (option.choice.attention, option.choice.ffn)
        return replace(option, score=option.score * factor, parts=None) if both else option

    return replace(problem, options=tuple(tuple(map(discounted, group)) for group in problem.options))


def with_weights(problem: Problem, weights: np.ndarray) -> Problem:
    """Return the problem with the scores of every layer times its weight, ``(layers,)``."""
    options = tuple(
        tuple(replace(option, score=option.score * weight, parts=None) for option in group)
        for group, weight in zip(problem.options, [*weights, 1.0], strict=True)
    )
    return replace(problem, options=options)


def sample(space: Space, speed: float, seed: int) -> list[dict[str, Any]]:
    """Return `RANDOM` random children, then the shortlist, the solver's diverse solutions, as JSON."""
    drawn = [space.rival("random", speed, seed, number) for number in range(RANDOM)]
    return [plain(child) for child in (*drawn, *space.diverse(speed, SHORTLISTED, seed))]


def fitted_weights(problem: Problem, children: Sequence[Architecture], true: np.ndarray) -> np.ndarray:
    """Return weights per layer that make sums equal to the children's KL ``true``, shrunk towards one factor."""
    sums = np.array(
        [[problem.option(layer, choice).score for layer, choice in enumerate(child.layers)] for child in children]
    )
    factor = float((sums.sum(1) @ true) / (sums.sum(1) @ sums.sum(1)))
    scale = sums.std(0).mean() + 1e-12
    gram = sums.T @ sums / scale**2 + RIDGE * len(children) * np.eye(sums.shape[1])
    change = np.linalg.solve(gram, sums.T @ (true - factor * sums.sum(1)) / scale**2)
    return np.clip(factor + change, 0.1 * factor, 10 * factor)


def solve_with_terms(problem: Problem, terms: Mapping[tuple[Place, Place], float]) -> Architecture:
    """Return the architecture of least sum of scores and terms of neighbors, by a linearized program.

    The term of two neighbors with scores s and t is c·√(s·t). It has a variable z for each two of their variants:
    z >= x + y - 1 and z >= 0 if c is positive, z <= x and z <= y if c is negative.

    Raises:
        TangramError: the program has no solution.
    """
    (batches,) = problem.batch_grid()
    resources, groups = problem.resources(batches), problem.group_of
    options = [option for group in problem.options for option in group]
    columns: dict[tuple[Place, str], list[int]] = {}  # x's whose sum says that a subblock has a variant
    for i, (group, option) in enumerate(zip(groups, options, strict=True)):
        if isinstance(option.choice, LayerChoice):
            for kind in KINDS:
                columns.setdefault(((int(group), kind), getattr(option.choice, kind)), []).append(i)
    entries: list[tuple[int, int, float]] = []
    upper: list[float] = []
    costs = [option.score for option in options]

    def at_most(terms_of_row: Sequence[tuple[int, float]], bound: float) -> None:
        entries.extend((len(upper), column, value) for column, value in terms_of_row)
        upper.append(bound)

    for row, budget in zip(resources.usage, resources.budget, strict=True):
        at_most(list(enumerate(row)), float(budget))
    for (first, second), c in terms.items():
        variants = [[v for place, v in columns if place == each and v != PARENT] for each in (first, second)]
        for a, b in itertools.product(*variants):
            s, t = max(score_of(problem, first, a), 0.0), max(score_of(problem, second, b), 0.0)
            if abs(c) * np.sqrt(s * t) < 1e-6:
                continue
            z = len(costs)
            costs.append(c * np.sqrt(s * t))
            xs, ys = columns[first, a], columns[second, b]
            if c > 0:
                at_most([*((x, 1.0) for x in xs), *((y, 1.0) for y in ys), (z, -1.0)], 1.0)
            else:
                at_most([(z, 1.0), *((x, -1.0) for x in xs)], 0.0)
                at_most([(z, 1.0), *((y, -1.0) for y in ys)], 0.0)
    rows, cols, values = (np.array(part) for part in zip(*entries, strict=True))
    limits = LinearConstraint(coo_array((values, (rows, cols)), (len(upper), len(costs))).tocsr(), -np.inf, upper)
    one = coo_array((np.ones(len(groups)), (groups, np.arange(len(groups)))), (groups[-1] + 1, len(costs)))
    whole = np.zeros(len(costs))
    whole[: len(groups)] = 1  # z follow from x
    result = milp(
        costs,
        integrality=whole,
        bounds=(0, 1),
        constraints=[limits, LinearConstraint(one.tocsr(), 1, 1)],
        options={"time_limit": 120, "mip_rel_gap": 1e-3},
    )
    if result.x is None:
        raise TangramError(f"the program with terms of neighbors has no solution: {result.message}")
    return problem.architecture(result.x[: len(groups)])


def solved(
    space: Space, speed: float, seed: int, terms: Sequence[Sequence[Any]], weights: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Return the architectures of the arms that solve another program, as JSON.

    Args:
        space: the search space.
        speed: the limit.
        seed: the draw of score text.
        terms: two neighbors and their c, see `interactions`.
        weights: of the layers.
    """
    problem = space.problem(speed, seed)
    factors = {(tuple(first), tuple(second)): c for first, second, c in terms}
    inside = [c for (first, second), c in factors.items() if first[0] == second[0]]
    # (s + t)·f = s + t + c·√(s·t) for equal s and t
    discount = 1 + float(np.median(inside)) / 2
    found = {NEIGHBORS: solve_with_terms(problem, factors)}
    others = {
        DISCOUNT: with_discount(problem, discount),
        CALIBRATED: with_weights(problem, np.array(weights)),
        MORE_TEXT: space.averaged().problem(speed),
    }
    found |= {arm: solve(other, SEARCH)[0].architecture for arm, other in others.items()}
    return {arm: plain(architecture) for arm, architecture in found.items()}


def improved(bench: Bench) -> Iterator[tuple[float, int, str, Architecture]]:
    """Yield speed, seed, arm and architecture of every arm."""
    scale, space, run = bench.scale, bench.space, bench.work.run
    points = list(itertools.product(scale.speeds, range(scale.seeds)))
    tasks = [{"space": space, "speed": speed, "seed": seed} for speed, seed in points]
    samples = [list(map(from_json, children)) for children in run(sample, tasks, "samples")]
    terms = [[[*pair, c] for pair, c in interactions(bench, seed).items()] for seed in range(scale.seeds)]
    of_seed = [(seed, children) for (_, seed), children in zip(points, samples, strict=True)]

    own = [(child, seed) for seed, children in of_seed for child in children]
    losses = iter(exact(bench, own, "children for weights"))
    for task, (speed, seed), children in zip(tasks, points, samples, strict=True):
        true = [next(losses) for _ in children]
        weights = fitted_weights(space.problem(speed, seed), children, np.array(true))
        task |= {"terms": terms[seed], "weights": weights.tolist()}

    others = {seed: [other for other in range(scale.seeds) if other != seed] for seed in range(scale.seeds)}
    fresh = [(child, other) for seed, children in of_seed for child in children[RANDOM:] for other in others[seed]]
    losses = iter(exact(bench, fresh, "shortlist").reshape(-1, scale.seeds - 1).mean(1))
    for (speed, seed), children, found in zip(points, samples, run(solved, tasks, "other objectives"), strict=True):
        true = [next(losses) for _ in children[RANDOM:]]
        yield speed, seed, SHORTLIST, children[RANDOM + int(np.argmin(true))]
        for arm, architecture in found.items():
            yield speed, seed, arm, from_json(architecture)


def sums_experiment(bench: Bench, study: Study) -> None:
    """Measure the children of every arm at every speed, beside those of the plain sum (of `searches`)."""
    found = list(improved(bench))
    for (speed, seed, arm, _), metrics in zip(found, bench.children([a for *_, a in found]), strict=True):
        record_child(study, "sums", arm, seed, metrics, speed)
    _claims(bench, study)


def _claims(bench: Bench, study: Study) -> None:
    frame, plain_sum = study.frame("sums"), study.frame("searches")
    keys = ["x", "seed"]
    base = plain_sum[(plain_sum["arm"] == MIP) & (plain_sum["metric"] == "kl")].set_index(keys)["value"]
    rows = []
    for number, arm in enumerate((NEIGHBORS, DISCOUNT, CALIBRATED, SHORTLIST, MORE_TEXT)):
        value = frame[(frame["arm"] == arm) & (frame["metric"] == "kl")].set_index(keys)["value"]
        gain = (base - value) / base
        by_seed = gain.groupby("seed").mean()
        add_claim(
            study,
            interval(by_seed.to_numpy()),
            claim=("sum-neighbors", "sum-discount", "sum-calibrated", "sum-shortlist", "sum-text")[number],
            statement=f"a better child than that of the plain sum: {arm}",
            where="a question of ours",
            seeds=bench.scale.seeds,
            unit="of the plain sum's KL, less",
            note="mean over the targets, at equal predicted speed, before finetuning; seeds are draws of text",
        )
        row = [arm]
        for speed in bench.scale.speeds:
            row += [f"{value.xs(speed, level='x').mean():.4f}", f"{gain.xs(speed, level='x').mean():+.1%}"]
        rows.append(row)
    rows.insert(
        0, ["plain sum", *(c for s in bench.scale.speeds for c in (f"{base.xs(s, level='x').mean():.4f}", "0"))]
    )
    columns = ["objective", *(c for speed in bench.scale.speeds for c in (f"KL at {speed:g}", "gain"))]
    caption = "True KL of the children on held-out passages, nats per token, means over draws of score text."
    study.figures.append(Table(columns, rows, title="Other objectives than the plain sum", caption=caption))
