"""Long context (tables 3, 7, 19): needles and variable tracking at 1, 2 and 4 times the length of GKD's sequences."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from tangram.config import LongContext
from tangram.evaluation.long_context import Generator, margins, read_sentences
from tangram.models.loading import load_tokenizer
from tangram.report.document import Table
from tangram_studies.papers.puzzle.common import BASE, Bench, add_claim
from tangram_studies.papers.puzzle.laboratory import Lab, model_of
from tangram_studies.papers.puzzle.searches import MIP
from tangram_studies.papers.puzzle.space import plain
from tangram_studies.papers.puzzle.training import Children, adopted
from tangram_studies.study import Study, difference

BEFORE = "child"
AFTER = "child after GKD"


def answers(
    lab: Lab,
    architecture: Mapping[str, Any],
    library: str,
    settings: Mapping[str, Any],
    training: Mapping[str, Any] | None,
    seed: int,
    keep: bool = False,
) -> list[dict[str, Any]]:
    """Return a model's margins, in nats, on all questions.

    Args:
        lab: the laboratory.
        architecture: the model's architecture.
        library: the library of its pieces.
        settings: config section `evaluation.long_context`.
        training: config section `finetune`; None measures the model before it.
        seed: seed of the order of the sequences.
        keep: see `model_of`.
    """
    model = model_of(lab, architecture, library, training, seed, keep=keep)
    tokenizer, section_of = load_tokenizer(lab.parent), LongContext.model_validate(dict(settings))
    generator = Generator(section_of, tokenizer, read_sentences(lab.heldout, tokenizer), lab.seed)
    rows = []
    for task, length in itertools.product(section_of.tasks, section_of.lengths):
        values = margins(model, tokenizer, generator.questions(task, length), "study_puzzle: long context")
        rows += [{"task": task, "length": length, "sample": i, "margin": value} for i, value in enumerate(values)]
    return rows


def context_experiment(bench: Bench, study: Study, found: Children) -> None:
    """Ask the parent and the child, before and after global distillation."""
    scale = bench.scale
    settings = LongContext(lengths=scale.lengths, questions=scale.questions).model_dump(mode="json")
    shared = {"lab": bench.lab, "library": BASE, "settings": settings}
    child = {**shared, "architecture": plain(found[scale.speed, 0][MIP])}
    parent = {**shared, "architecture": plain(bench.space.problem(1.0).parent)}
    tasks = [
        ("parent", 0, {**parent, "training": None, "seed": 0}),
        (BEFORE, 0, {**child, "training": None, "seed": 0}),
        *((AFTER, seed, {**shared, **adopted(found[scale.speed, 0][MIP], seed)}) for seed in range(scale.seeds)),
    ]
    results = bench.work.run(answers, [task for *_, task in tasks], "long context")
    asked: dict[tuple[str, int], list[np.ndarray]] = {}
    for (arm, seed, _), rows in zip(tasks, results, strict=True):
        for length in scale.lengths:
            part = np.array([row["margin"] for row in rows if row["length"] == length])
            study.record("long context", arm, seed, "accuracy", float(np.mean(part > 0)), float(length))
            study.record("long context", arm, seed, "margin", float(np.mean(part)), float(length))
            asked.setdefault((arm, length), []).append(part)
    losses = {length: asked["parent", length][0] - np.mean(asked[AFTER, length], axis=0) for length in scale.lengths}
    _claims(bench, study, losses)


def _values(study: Study, arm: str, metric: str, length: float) -> np.ndarray:
    rows = study.frame("long context")
    rows = rows[(rows["arm"] == arm) & (rows["metric"] == metric) & (rows["x"] == length)]
    return rows.sort_values("seed")["value"].to_numpy()


def _claims(bench: Bench, study: Study, losses: Mapping[int, np.ndarray]) -> None:
    """Add the claims from the losses of margin in nats, ``(questions,)``; each length has questions of its own."""
    scale = bench.scale
    trained, twice, *_, longest = scale.lengths
    for claim, statement, pair, paper in (
        (
            "context-long",
            "beyond the length of its training, the child loses more than at that length",
            (losses[longest], losses[trained]),
            "8K 97.8 %, 16K 96.2 %, 32K 87.9 % kept",
        ),
        (
            "context-twice",
            "the child holds up to twice that length: it loses no more there than at that length",
            (losses[trained], losses[twice]),
            "96.2 % kept at 16K, 97.8 % at 8K",
        ),
    ):
        add_claim(
            study,
            difference(*pair),
            claim=claim,
            statement=statement,
            where="tables 3, 7 and 19",
            paper_value=paper,
            seeds=2 * scale.questions,
            unit="nats of margin",
            note=f"GKD on sequences of {scale.length} tokens, mean over {scale.seeds} orders; seeds are questions, "
            f"{2 * scale.questions} others per length; the margin is the log-likelihood of the right answer less that "
            "of the best wrong one",
        )
    rows = []
    for arm in ("parent", BEFORE, AFTER):
        row = [arm]
        for length in map(float, scale.lengths):
            accuracy, margin = (_values(study, arm, metric, length).mean() for metric in ("accuracy", "margin"))
            row += [f"{100 * accuracy:.0f}", f"{margin:+.2f}"]
        rows.append(row)
    columns = ["model"]
    for length in scale.lengths:
        columns += [f"accuracy at {length}, %", "margin, nats"]
    caption = (
        f"Needles and variable tracking; chance is {100 / LongContext(lengths=bench.scale.lengths).choices:.0f} %."
    )
    study.figures.append(Table(columns, rows, title="Long context", caption=caption))
