"""Block distillation in every fourth layer: tables 8 (coupled pairs), 9 (narrow text) and 10 (token budget).

A seed is a draw of the distill text; every library of a seed is scored on that seed's score text and solved for the
same limit, so its children differ in the pieces alone.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from tangram.blocks.base import NO_OP
from tangram.report.document import Table
from tangram_studies.papers.puzzle import laboratory
from tangram_studies.papers.puzzle.common import (
    Bench,
    add_claim,
    record_child,
    score_library,
    train_library,
)
from tangram_studies.papers.puzzle.coupling import coupling_experiment
from tangram_studies.papers.puzzle.laboratory import NARROW
from tangram_studies.papers.puzzle.space import Space
from tangram_studies.plots import lines_figure
from tangram_studies.study import Study, interval

SHARE = 0.5  # of the largest saving that these layers can give, asked of every library
UNTRAINED, NARROW_TEXT = "untrained", "narrow text"


def layers_of(bench: Bench) -> list[int]:
    """Return the layers that have pieces."""
    return list(range(1, bench.lab.layers, bench.scale.every))


def common_speed(bench: Bench, space: Space) -> float:
    """Return the limit for all libraries: half of the saving of no-ops in all their layers."""
    rows = space.scores[0]
    empty = rows[rows["variant"] == NO_OP]
    fastest = dataclasses.replace(space, scores=(empty,)).fastest()
    return 1 + SHARE * (fastest - 1)


def libraries(bench: Bench) -> dict[str, tuple[int | None, int]]:
    """Return sequences (None for all) and epochs of every library of a seed, by arm; the text is the seed's."""
    scale = bench.scale
    arms: dict[str, tuple[int | None, int]] = {UNTRAINED: (None, 0)}
    arms |= {f"{sequences * scale.length} tokens": (sequences, scale.epochs) for sequences in scale.bld_budgets}
    return {**arms, f"{scale.distill} tokens": (None, scale.epochs), NARROW_TEXT: (None, scale.epochs)}


def distillation_experiment(bench: Bench, study: Study) -> None:
    """Train libraries on several budgets and texts, and measure the children that they give."""
    scale, layers = bench.scale, layers_of(bench)
    variants = {kind: [name for name in names if name != NO_OP] for kind, names in scale.variants.items()}
    narrow = [
        {
            "lab": bench.lab,
            "text": f"narrow-{seed}",
            "source": NARROW,
            "tokens": scale.distill,
            "seed": bench.lab.seed + 301 + seed,
        }
        for seed in range(scale.seeds)
    ]
    bench.work.run(laboratory.write_text, narrow, "narrow text")
    found: dict[str, list[pd.DataFrame]] = {arm: [] for arm in libraries(bench)}
    for seed in range(scale.seeds):
        for arm, (sequences, epochs) in libraries(bench).items():
            text = f"narrow-{seed}" if arm == NARROW_TEXT else bench.text(seed)
            library = f"{arm.replace(' ', '-')}-{seed}"
            # An untrained piece's held-out loss is on the same sequences, so `sequences` changes nothing there.
            pieces = {**variants, "attention": [*variants["attention"], NO_OP], "ffn": [*variants["ffn"], NO_OP]}
            train_library(bench.lab, bench.work, library, text, pieces, layers, epochs, seed, sequences)
            found[arm].append(score_library(bench.lab, bench.work, library, f"score-{seed}", pieces, layers))
    spaces = {arm: dataclasses.replace(bench.space, scores=tuple(tables)) for arm, tables in found.items()}
    speed = common_speed(bench, spaces[UNTRAINED])
    for arm, space in spaces.items():
        for seed in range(scale.seeds):
            library = f"{arm.replace(' ', '-')}-{seed}"
            (metrics,) = bench.children([space.solve(speed, seed)], library)
            sequences, epochs = libraries(bench)[arm]
            x = 0.0 if epochs == 0 else float((sequences or scale.distill // scale.length) * scale.length)
            record_child(study, "distillation", arm, seed, metrics, x)
    _claims(bench, study, speed)
    coupling_experiment(bench, study, spaces[f"{scale.distill} tokens"], speed)


def _claims(bench: Bench, study: Study, speed: float) -> None:
    scale = bench.scale
    arms, full = libraries(bench), f"{scale.distill} tokens"
    half = [arm for arm in arms if arm.endswith(" tokens")][-2]
    rows = study.frame("distillation")
    kl = {arm: rows[(rows["arm"] == arm) & (rows["metric"] == "kl")].set_index("seed")["value"] for arm in arms}
    note = (
        f"assembled children of every {scale.every}th layer at {speed:.2f} times the speed, before finetuning; "
        "seeds are draws of distill and score text"
    )

    def claim(name: str, better: str, worse: str, statement: str, where: str, paper: str) -> None:
        add_claim(
            study,
            interval((kl[worse] - kl[better]).to_numpy()),
            claim=name,
            statement=statement,
            where=where,
            paper_value=paper,
            seeds=scale.seeds,
            note=note,
        )

    claim("bld", full, UNTRAINED, "trained pieces give a better child than initial ones", "section 3", "-")
    claim(
        "bld-tokens",
        full,
        half,
        "twice the tokens of block distillation give a better child",
        "table 10",
        "78.54 and 78.44 (MMLU)",
    )
    claim("narrow", full, NARROW_TEXT, "narrow text gives a worse child", "table 9", "MMLU 78.39 and 74.84")
    cells = []
    for arm, values in kl.items():
        loss = rows[(rows["arm"] == arm) & (rows["metric"] == "loss")]["value"]
        cells.append([arm, f"{values.mean():.4f}", f"{loss.mean():.4f}", ", ".join(f"{v:.4f}" for v in values)])
    caption = f"Assembled children at {speed:.2f} times the packed parent's speed; nats per token."
    columns = ["library", "KL, mean", "LM loss, mean", "KL by seed"]
    study.figures.append(Table(columns, cells, title="Block distillation", caption=caption))
    budget = rows[(rows["metric"] == "kl") & (rows["arm"] != NARROW_TEXT)].assign(arm="child")
    if np.unique(budget["x"]).size > 2:
        figure = lines_figure(
            "bld",
            "KL over tokens of block distillation",
            "0: initial pieces; bands: 95 % over draws of text.",
            {"": budget},
            "tokens",
            "KL, nats per token",
        )
        study.figures.append(figure)
