"""Downstream accuracy: table 11 (scores by the accuracy on half of the questions) and table 1 (accuracy that is kept).

The questions are multiple choice. Each draw of score questions has a different part of the train half; children answer
the test half.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tangram.blocks.registry import get_block
from tangram.evaluation.tasks import read_tasks
from tangram.library.pieces import read_piece
from tangram.models.families import Shape
from tangram.models.loading import load_tokenizer
from tangram.report.document import Table
from tangram.scores.answers import AnswerScores
from tangram.scores.questions import Asked, in_train_half
from tangram.selection.agreement import fidelity
from tangram_studies.papers.puzzle.common import BASE, Bench, add_claim
from tangram_studies.papers.puzzle.distillation import common_speed, layers_of
from tangram_studies.papers.puzzle.fidelity import children_of
from tangram_studies.papers.puzzle.laboratory import Lab, model_of, parent_of, piece_file
from tangram_studies.papers.puzzle.searches import MIP
from tangram_studies.papers.puzzle.space import Space, plain
from tangram_studies.papers.puzzle.training import Children, adopted
from tangram_studies.study import Interval, Study, interval

BY_KL, BY_ACCURACY, BY_MARGIN = "scores by KL", "scores by accuracy", "scores by margin"
METRICS = {BY_KL: "kl", BY_ACCURACY: "accuracy", BY_MARGIN: "margin"}
Questions = list[dict[str, Any]]


def read_questions(archive: str, names: Sequence[str]) -> tuple[Questions, Questions]:
    """Return the train and the test halves of BIG-bench tasks, each task's questions in turn, as JSON."""
    halves: tuple[list[Questions], list[Questions]] = ([], [])
    for name, questions in read_tasks(archive, names).items():
        asked = [
            (
                in_train_half(each),
                Asked(name, f"Q: {each.input}\nA:", tuple(f" {c}" for c in each.choices), each.label),
            )
            for each in questions
        ]
        for half, train in zip(halves, (True, False), strict=True):
            half.append([dataclasses.asdict(question) for is_train, question in asked if is_train == train])
    in_turn = [
        [question for group in itertools.zip_longest(*half) for question in group if question is not None]
        for half in halves
    ]
    return in_turn[0], in_turn[1]


def asked_of(questions: Questions) -> list[Asked]:
    """Return questions from JSON."""
    return [Asked(**{**each, "choices": tuple(each["choices"])}) for each in questions]


def score_pieces(lab: Lab, pieces: Sequence[Sequence[Any]], questions: Questions) -> list[dict[str, Any]]:
    """Return the rows of `tables.SCORES` of pieces (layer, kind, variant), in the order of their layers."""
    scorer = AnswerScores(parent_of(lab), load_tokenizer(lab.parent), asked_of(questions))
    shape, rows = Shape.of(parent_of(lab).config), []
    for layer, kind, variant in sorted(map(tuple, pieces)):
        tensors = read_piece(piece_file(lab, BASE, kind, variant, layer), layer, kind)
        rows += scorer.score_piece(layer, get_block(kind, variant, shape), tensors)
    return rows


def answer(
    lab: Lab,
    architecture: Mapping[str, Any],
    training: Mapping[str, Any] | None,
    seed: int,
    questions: Questions,
    keep: bool = False,
) -> dict[str, list[float]]:
    """Return a model's accuracy and margin on every question, after global distillation if ``training`` is given."""
    model = model_of(lab, architecture, BASE, training, seed, keep=keep)
    asked = asked_of(questions)
    answers = AnswerScores(model, load_tokenizer(lab.parent), asked).answers
    return {name: values.tolist() for name, values in answers.items()}


def scored_space(bench: Bench, train: Questions) -> Space:
    """Return the space of some layers whose tables hold KL, accuracy and margin, one for each draw."""
    scale, layers = bench.scale, layers_of(bench)
    parts = [train[seed * scale.asked : (seed + 1) * scale.asked] for seed in range(scale.seeds)]
    pieces = [[layer, kind, name] for kind, names in scale.variants.items() for layer in layers for name in names]
    halves = [pieces[::2], pieces[1::2]]  # two tasks per draw
    tasks = [{"lab": bench.lab, "pieces": half, "questions": part} for part in parts for half in halves]
    results = bench.work.run(score_pieces, tasks, "scores by accuracy")
    tables = []
    for seed, table in enumerate(bench.space.scores):
        rows = [*results[2 * seed], *results[2 * seed + 1]]
        tables.append(pd.concat([table[table["layer"].isin(layers)], pd.DataFrame(rows)], ignore_index=True))
    return dataclasses.replace(bench.space, scores=tuple(tables))


def accuracy_experiment(bench: Bench, study: Study, found: Children, archive: str) -> None:
    """Search with scores by accuracy, and let children answer questions that no search has seen."""
    scale = bench.scale
    train, test = read_questions(archive, scale.tasks)
    test = test[: scale.answered]
    space = scored_space(bench, train)
    speed = common_speed(bench, space)
    runs: list[tuple[str, int, dict[str, Any]]] = []
    for arm, seed in itertools.product(METRICS, range(scale.seeds)):
        architecture = space.solve(speed, seed, METRICS[arm])
        runs.append((arm, seed, {"architecture": plain(architecture), "training": None, "seed": 0}))
    runs.append(("parent", 0, {"architecture": plain(bench.space.problem(1.0).parent), "training": None, "seed": 0}))
    for target, seed in itertools.product(scale.speeds, range(scale.seeds)):
        runs.append((f"child of {target:g}", seed, adopted(found[target, seed][MIP], seed)))
    tasks = [{"lab": bench.lab, **task, "questions": test} for *_, task in runs]
    answers = bench.work.run(answer, tasks, "questions")
    for (arm, seed, _), values in zip(runs, answers, strict=True):
        for metric in ("accuracy", "margin"):
            study.record("questions", arm, seed, metric, float(np.mean(values[metric])))
    _claims(bench, study, speed, len(test), chance_of(test))
    _fidelity(bench, study, space, speed, test[: scale.answered_by_many])


def _fidelity(bench: Bench, study: Study, space: Space, speed: float, questions: Questions) -> None:
    """Compare sums of scores of the first draw with the answers of many children."""
    children = children_of(space, speed, bench.scale.children)
    shared = {"lab": bench.lab, "training": None, "seed": 0, "questions": questions}
    tasks = [{**shared, "architecture": plain(child)} for child in children]
    answers = bench.work.run(answer, tasks, "questions of many children")
    problems = {by: space.problem(speed, 0, metric) for by, metric in METRICS.items()}
    sums = {by: np.array([problem.objective(child) for child in children]) for by, problem in problems.items()}
    true = {metric: np.array([np.mean(each[metric]) for each in answers]) for metric in ("accuracy", "margin")}
    for name, values in {**{f"sum of {by}": values for by, values in sums.items()}, **true}.items():
        for number, value in enumerate(values):
            study.record("fidelity of answers", f"child {number}", 0, name, value, speed)
    rows = []
    for by, (metric, means) in itertools.product(sums, true.items()):
        found = fidelity(sums[by], 1 + means.max() - means)  # a loss above 0; tau and regret know no origin
        regret = ", ".join(f"{value:.3f}" for value in found.regret.values())
        tau = f"{found.tau:.2f} ({found.tau_low:.2f} to {found.tau_high:.2f})"
        rows.append([by, metric, str(found.children), tau, f"{found.rho:.2f}", regret])
        if metric == "accuracy":
            add_claim(
                study,
                Interval(found.tau, found.tau_low, found.tau_high),
                above=0.5,
                claim=f"answers-order-{METRICS[by]}",
                statement=f"the sum of {by} orders assembled children by accuracy (tau above 0.5)",
                where="section 4; not shown in the paper",
                seeds=found.children,
                unit="Kendall's tau",
                note=f"every {bench.scale.every}th layer, {speed:.2f} times the speed; {len(questions)} questions that "
                "no score has seen; seeds are children; the interval is a bootstrap over them",
            )
    columns = ["prediction", "truth", "children", "tau (95 %)", "rho", "regret 1, 5, 10"]
    caption = f"{len(questions)} questions; regret in fractions of answers or in nats of margin."
    study.figures.append(Table(columns, rows, 2, caption, "Sums and answers"))


def chance_of(questions: Questions) -> float:
    """Return the accuracy of guessing."""
    return float(np.mean([1 / len(question["choices"]) for question in questions]))


def _values(study: Study, arm: str, metric: str) -> np.ndarray:
    rows = study.frame("questions")
    rows = rows[(rows["arm"] == arm) & (rows["metric"] == metric)]
    return rows.sort_values("seed")["value"].to_numpy()


def _claims(bench: Bench, study: Study, speed: float, questions: int, chance: float) -> None:
    scale = bench.scale
    for claim, arm, metric in (("task-scores", BY_ACCURACY, "accuracy"), ("task-margin", BY_MARGIN, "margin")):
        add_claim(
            study,
            interval(_values(study, arm, metric) - _values(study, BY_KL, metric)),
            claim=claim,
            statement=f"{arm} of a task give a child that is better at the task than scores by KL",
            where="table 11",
            paper_value="66.24 and 64.94 (half of MMLU)",
            seeds=scale.seeds,
            unit="fraction of answers" if metric == "accuracy" else "nats of margin",
            note=f"every {scale.every}th layer, {speed:.2f} times the speed; {scale.asked} questions per draw of "
            f"scores, {questions} other questions asked",
        )
    strongest = f"child of {scale.speeds[0]:g}"
    parent = _values(study, "parent", "accuracy")[0]
    kept = (_values(study, strongest, "accuracy") - chance) / max(
        parent - chance, 1e-6
    )  # of a parent that knows nothing
    add_claim(
        study,
        interval(kept),
        above=0.95,
        claim="accuracy-kept",
        statement="the child keeps more than 95 % of the parent's accuracy",
        where="table 1",
        paper_value="98.4 %",
        seeds=scale.seeds,
        unit="of the parent's accuracy above chance",
        note=f"at {scale.speeds[0]:g} times the packed parent's speed, in float32; after {scale.finetune} tokens "
        f"of GKD; {questions} questions; the parent answers {100 * parent:.1f} %; seeds are draws of score text and "
        "orders of the sequences",
    )
    rows = []
    for arm in study.frame("questions")["arm"].unique():
        accuracy, margin = (_values(study, arm, metric) for metric in ("accuracy", "margin"))
        rows.append([arm, f"{100 * accuracy.mean():.1f}", f"{margin.mean():+.3f}", str(len(accuracy))])
    caption = f"{questions} multiple-choice questions; chance is {100 * chance:.0f} %; means over seeds."
    study.figures.append(Table(["model", "accuracy, %", "margin, nats", "seeds"], rows, title="Tasks", caption=caption))
