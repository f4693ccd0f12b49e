"""Coupled block distillation (table 8): pairs of the layers' variants that diverse solutions use, trained together."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pandas as pd

from tangram.blocks.architecture import LayerChoice, pieces_of
from tangram.blocks.base import PAIR, PARENT
from tangram.files import write_tensors
from tangram.library.coupled import distill_pair
from tangram.library.pieces import read_piece
from tangram.report.document import Table
from tangram_studies.papers.puzzle import laboratory
from tangram_studies.papers.puzzle.common import Bench, add_claim, record_child
from tangram_studies.papers.puzzle.laboratory import Lab, piece_file, problem_of
from tangram_studies.papers.puzzle.space import Space
from tangram_studies.study import Study, interval

DECOUPLED, COUPLED = "decoupled", "two-stage coupled"
SOLUTIONS = 4  # diverse solutions, whose pairs are trained together


def weights_of(lab: Lab, library: str, choice: LayerChoice, layer: int) -> dict[str, Any]:
    """Return the trained pieces of a layer's two variants, by kind."""
    return {
        kind: read_piece(piece_file(lab, library, kind, variant, layer), layer, kind)
        for kind, variant in pieces_of(choice)
    }


def train_pair(
    lab: Lab, library: str, text: str, score_text: str, pair: str, layer: int, epochs: int, seed: int
) -> dict[str, Any]:
    """Train a pair from its pieces and write it; return its losses and scores, and the scores before the training."""
    choice = LayerChoice.parse(pair)
    initial = weights_of(lab, library, choice, layer)
    scorer = laboratory.scorer_of(lab, score_text)
    before = scorer.score_pair(layer, choice, initial)
    piece = distill_pair(problem_of(lab, text, layer, epochs), choice, seed, initial)
    tensors = {f"model.layers.{layer}.{name}": tensor for name, tensor in piece.weights.items()}
    path = piece_file(lab, library, PAIR, pair, layer)
    write_tensors(path, tensors, {})
    trained = {kind: read_piece(path, layer, kind) for kind, _ in pieces_of(choice)}
    after = scorer.score_pair(layer, choice, trained)
    return {"before": piece.loss_before, "after": piece.loss_after, "decoupled": before, "coupled": after}


def coupling_experiment(bench: Bench, study: Study, space: Space, speed: float) -> None:
    """Train coupled pairs, and measure the children with them.

    Args:
        bench: the shared material.
        study: the study, to which claims and measurements are added.
        space: the space of the decoupled libraries, one score table per seed.
        speed: the limit of all children.
    """
    for seed in range(bench.scale.seeds):
        rows = _trained_pairs(bench, study, space, speed, seed)
        both = pd.concat([space.scores[seed], pd.DataFrame(rows)], ignore_index=True)
        for arm, table in ((DECOUPLED, space.scores[seed]), (COUPLED, both)):
            architecture = dataclasses.replace(space, scores=(table,)).solve(speed)
            (metrics,) = bench.children([architecture], library_name(bench, seed))
            record_child(study, "coupling", arm, seed, metrics)
            count = sum(choice.coupled for choice in architecture.layers)
            study.record("coupling", arm, seed, "coupled layers", count)
    _claim(bench, study, speed)


def _trained_pairs(bench: Bench, study: Study, space: Space, speed: float, seed: int) -> list[dict[str, Any]]:
    """Train the pairs that diverse solutions of one seed use; return their scores."""
    used = [
        {(layer, choice.pair) for layer, choice in enumerate(architecture.layers) if replaced(choice)}
        for architecture in space.diverse(speed, SOLUTIONS, seed)
    ]
    shared = {"lab": bench.lab, "library": library_name(bench, seed), "epochs": bench.scale.epochs, "seed": seed}
    shared |= {"text": bench.text(seed), "score_text": f"score-{seed}"}
    tasks = [{**shared, "layer": layer, "pair": pair} for layer, pair in sorted(set().union(*used))]
    results = bench.work.run(train_pair, tasks, "coupled pairs")
    for task, result in zip(tasks, results, strict=True):
        losses = {"before": result["before"], "after": result["after"] or result["before"]}
        losses |= {f"KL {when}": _kl(result[when]) for when in ("decoupled", "coupled")}
        for name, value in losses.items():
            study.record("coupled pairs", f"{task['layer']} {task['pair']}", seed, name, value)
    return list(itertools.chain.from_iterable(result["coupled"] for result in results))


def _kl(rows: list[dict[str, Any]]) -> float:
    return float(next(row["value"] for row in rows if row["metric"] == "kl"))


def library_name(bench: Bench, seed: int) -> str:
    """Return the name of a seed's library with all tokens of block distillation."""
    return f"{bench.scale.distill}-tokens-{seed}"


def replaced(choice: LayerChoice) -> bool:
    """Return whether neither variant is the parent's: the layers in which coupling can matter."""
    return PARENT not in (choice.attention, choice.ffn)


def _claim(bench: Bench, study: Study, speed: float) -> None:
    rows = study.frame("coupling")
    kl = {
        arm: rows[(rows["arm"] == arm) & (rows["metric"] == "kl")].sort_values("seed")["value"].to_numpy()
        for arm in (DECOUPLED, COUPLED)
    }
    pairs = study.frame("coupled pairs").groupby("metric")["value"].mean()
    counts = rows[(rows["arm"] == COUPLED) & (rows["metric"] == "coupled layers")]["value"]
    add_claim(
        study,
        interval(kl[DECOUPLED] - kl[COUPLED]),
        claim="coupled",
        statement="two-stage coupled block distillation gives a better child than decoupled",
        where="table 8",
        paper_value="73.98 and 73.10",
        seeds=bench.scale.seeds,
        note=f"at {speed:.2f} times the speed, before finetuning; {counts.mean():.1f} coupled layers on average; pairs "
        f"that were not trained keep sums of scores; KL {kl[DECOUPLED].mean():.4f} and {kl[COUPLED].mean():.4f}",
    )
    cells = [[arm, f"{values.mean():.4f}", ", ".join(f"{v:.4f}" for v in values)] for arm, values in kl.items()]
    caption = (
        "Nats per token; pairs that four diverse solutions use, trained together from the decoupled pieces. Alone in "
        f"the parent, a pair has KL {pairs['KL decoupled']:.4f} before and {pairs['KL coupled']:.4f} after, on average."
    )
    study.figures.append(Table(["library", "KL, mean", "KL by seed"], cells, title="Coupled pairs", caption=caption))
