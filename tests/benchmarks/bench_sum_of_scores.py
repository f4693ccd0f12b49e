"""Where the sum of scores fails, and whether a fitted sum chooses better children at equal cost.

Run: ``python tests/benchmarks/bench_sum_of_scores.py RUN [RUN ...]``, with runs as for `bench_screening.py`.

Per budget, children are solutions of the program on exact scores times random factors, so that they are near the
solution on the scores themselves. Their true KLs on the score split fit each objective; the solutions of the fitted
objectives are compared on held-out text, which no fit has seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from bench_screening import KEYS, costs_of, exact_of, file_of
from scipy.optimize import nnls
from scipy.stats import kendalltau

from tangram.activations import open_activations
from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.config import Search, Target
from tangram.corpus.tokens import read_tokens
from tangram.library.pieces import read_piece
from tangram.models.families import Shape
from tangram.models.loading import load_model
from tangram.search.problem import Option, Problem, options_of
from tangram.search.solve import solve
from tangram.selection.assembled import AssembledScores

BUDGETS = (("structure", 0.8), ("structure", 0.6), ("all", 0.2))
SPREADS = (0.5, 1.0, 2.0)  # standard deviations of the logarithms of the random factors
POWERS = (0.5, 0.7, 0.85, 1.0, 1.2)
THIRDS = 3  # parts of the depth with a weight of their own
LOSSES = {"kl": 1.0, "lm_loss_increase": 1.0}
Transform = Callable[[int, Option], float]  # maps a layer and its option to a score


def with_scores(problem: Problem, transform: Transform) -> Problem:
    """Return the problem with other scores of its layers' options."""
    groups = [
        tuple(replace(option, score=transform(layer, option), parts=None) for option in group)
        if layer < problem.num_layers
        else group
        for layer, group in enumerate(problem.options)
    ]
    return Problem(tuple(groups), problem.costs, problem.target)


def best(problem: Problem) -> Architecture:
    """Return the best architecture."""
    return solve(problem, Search())[0].architecture


def disturbed(problem: Problem, rng: np.random.Generator, spread: float) -> Architecture:
    """Return the best architecture for scores times random factors, one for every piece."""
    factors: dict[tuple[int, str, str], float] = {}

    def transform(layer: int, option: Option) -> float:
        assert isinstance(option.choice, LayerChoice)
        names = (("attention", option.choice.attention), ("ffn", option.choice.ffn))
        parts = zip(names, option.parts or (), strict=True)
        return sum(s * factors.setdefault((layer, *name), float(np.exp(spread * rng.normal()))) for name, s in parts)

    return best(with_scores(problem, transform))


def group_sums(problem: Problem, child: Architecture) -> np.ndarray:
    """Return a child's sums of scores of attention and FFN by third of the depth, ``(2 * THIRDS,)``."""
    sums = np.zeros((2, THIRDS))
    for layer, choice in enumerate(child.layers):
        sums[:, layer * THIRDS // problem.num_layers] += problem.option(layer, choice).parts or (0.0, 0.0)
    return sums.flatten()


def overlap(problem: Problem, child: Architecture) -> float:
    """Return the sum over layers of the smaller of both scores."""
    return sum(min(problem.option(layer, choice).parts or (0.0,)) for layer, choice in enumerate(child.layers))


def powered(problem: Problem, child: Architecture, power: float) -> float:
    """Return the sum of scores raised to a power."""
    chosen = (problem.option(layer, choice) for layer, choice in enumerate(child.layers))
    return sum(max(part, 0.0) ** power for option in chosen for part in option.parts or ())


def objectives(problem: Problem, children: Sequence[Architecture], kls: np.ndarray) -> dict[str, Transform]:
    """Return the plain sum and the fitted objectives."""
    weight = 1 / kls  # relative errors
    sums = np.array([group_sums(problem, child) for child in children])
    kinds = np.stack([sums[:, :THIRDS].sum(1), sums[:, THIRDS:].sum(1)], 1)
    of_kinds, _ = nnls(kinds * weight[:, None], np.ones(len(kls)))
    ridge = 0.1 * np.sqrt(len(kls)) * np.diag((sums * weight[:, None]).mean(0))
    target = np.concatenate([np.ones(len(kls)), ridge.diagonal() * of_kinds.mean()])
    of_groups, _ = nnls(np.concatenate([sums * weight[:, None], ridge]), target)
    overlaps = np.array([overlap(problem, child) for child in children])
    fitted = np.linalg.lstsq(np.stack([sums.sum(1), overlaps], 1) * weight[:, None], np.ones(len(kls)), rcond=None)[0]
    discount = float(np.clip(-fitted[1] / fitted[0], -0.5, 0.9))
    errors = {}
    for power in POWERS:
        sums_of_powers = np.array([powered(problem, child, power) for child in children])
        errors[power] = np.std(np.log(sums_of_powers / kls))
    power = min(errors, key=errors.__getitem__)
    print(f"  weights of kinds {of_kinds.round(2)}, of thirds {of_groups.round(2)}, discount {discount:.2f}, ", end="")
    print(f"power {power}")

    def parts(option: Option) -> np.ndarray:
        return np.array(option.parts)

    return {
        "plain sum": lambda layer, option: float(parts(option).sum()),
        "weights of kinds": lambda layer, option: float(of_kinds @ parts(option)),
        "weights of thirds": lambda layer, option: float(
            of_groups[[layer * THIRDS // problem.num_layers, THIRDS + layer * THIRDS // problem.num_layers]]
            @ parts(option)
        ),
        "discount in a layer": lambda layer, option: float(parts(option).sum() - discount * parts(option).min()),
        "power": lambda layer, option: float((np.maximum(parts(option), 0) ** power).sum()),
    }


class Judge:
    """True KLs of children on the score split and on held-out text."""

    def __init__(self, run: Path, source: dict[tuple[str, str], Path]):
        model = load_model(run / "parent").requires_grad_(False)
        self._scores = {}
        for split, stride in (("score", 4), ("heldout", 2)):
            tokens = read_tokens(run / f"corpus/{split}.parquet")
            states = open_activations(run / f"activations/{split}.npy", model, tokens, 4)

            def piece(kind: str, variant: str, layer: int) -> dict[str, torch.Tensor]:
                return read_piece(file_of(source[kind, variant], kind, variant), layer, kind)

            self._scores[split] = AssembledScores(model, states, tokens, piece, 4, stride)

    def kl(self, split: str, children: Sequence[Architecture], sequences: int) -> np.ndarray:
        """Return the children's mean KLs, ``(children,)``."""
        return self._scores[split].look(children, range(sequences)).mean(1)


def main(runs: Sequence[Path], count: int) -> None:
    """Print fidelity of the sum and the held-out KLs of the objectives' solutions, by budget."""
    torch.set_num_threads(1)
    exact = pd.concat([exact_of(run) for run in runs]).drop_duplicates(KEYS)
    both = pd.concat([exact_of(run, tuple(LOSSES)) for run in runs]).drop_duplicates([*KEYS, "metric"])
    layers, shape = int(exact["layer"].max()) + 1, Shape.of(load_model(runs[0] / "parent").config)
    costs = costs_of(exact, shape)
    judge = Judge(runs[0], {(row.kind, row.variant): Path(row.run) for row in exact.itertuples()})
    for library, share in BUDGETS:
        kept = exact[[library == "all" or "@" not in variant for variant in exact["variant"]]]
        limit = {"quantity": "latency", "max": share, "scenario": "bytes"}
        target = Target.model_validate({"constraints": [limit]})
        problem = Problem(options_of(kept, "kl", layers), costs, target)
        rng = np.random.default_rng(0)
        children = [disturbed(problem, rng, SPREADS[i % len(SPREADS)]) for i in range(count)]
        own = best(problem)
        kls = judge.kl("score", [own, *children], 3)
        sums = np.array([problem.objective(child) for child in [own, *children]])
        tau = kendalltau(sums[1:], kls[1:]).statistic
        print(f"{library}, {share} of the bytes: KL / sum of the solution {kls[0] / sums[0]:.2f}, ", end="")
        print(f"of {count} others {np.median(kls[1:] / sums[1:]):.2f}, Kendall {tau:.2f}", flush=True)
        found = {
            name: best(with_scores(problem, transform))
            for name, transform in objectives(problem, children, kls[1:]).items()
        }
        mine = both[both["variant"].isin(kept["variant"])]
        for name, objective in {"LM loss": "lm_loss_increase", "KL + LM loss": LOSSES}.items():
            found[name] = best(Problem(options_of(mine, objective, layers), costs, target))
        heldout, scored = (judge.kl(split, list(found.values()), n) for split, n in (("heldout", 4), ("score", 3)))
        for name, held, scored_kl in zip(found, heldout, scored, strict=True):
            print(f"  {name:20} KL on the score split {scored_kl:.4f}, held out {held:.4f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=18, help="children per budget that fit the objectives")
    arguments = parser.parse_args()
    main(arguments.runs, arguments.count)
