"""Global distillation (GKD): tables 6 (budget), 15 (what search and library are worth), 16 (on or off), 17 (losses)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from tangram.blocks.architecture import Architecture
from tangram.report.document import Table
from tangram_studies.papers.puzzle.common import Bench, add_claim, record_child
from tangram_studies.papers.puzzle.laboratory import FINETUNE
from tangram_studies.papers.puzzle.searches import MIP
from tangram_studies.papers.puzzle.space import plain
from tangram_studies.study import Interval, Study, interval

LOSSES = ("lm", "cosine", "kl")
PAPER_17 = {  # MMLU, MT-Bench, validation KLD after 5 billion tokens, by the losses
    (): "78.39, 8.67, 0.19",
    ("lm",): "78.55, 7.71, 0.31",
    ("lm", "kl"): "79.26, 8.85, 0.14",
    ("kl",): "79.33, 8.68, 0.10",
    ("lm", "cosine"): "79.04, 7.80, 0.30",
    ("cosine",): "79.40, 8.74, 0.16",
    ("lm", "cosine", "kl"): "79.45, 8.66, 0.14",
    ("cosine", "kl"): "79.61, 8.87, 0.11",
}
ADOPTED = ("cosine", "kl")
Children = Mapping[tuple[float, int], Mapping[str, Architecture]]


def weights(losses: tuple[str, ...]) -> dict[str, float]:
    """Return the section `finetune` of some losses with equal weights."""
    return {f"{name}_weight": float(name in losses) for name in LOSSES}


def adopted(architecture: Architecture, seed: int) -> dict[str, Any]:
    """Return the arguments of a child after global distillation with the adopted losses, which experiments share."""
    return {"architecture": plain(architecture), "training": weights(ADOPTED), "seed": seed, "keep": True}


def name_of(losses: tuple[str, ...]) -> str:
    """Return a loss mix as text."""
    return " + ".join(losses) or "none"


def training_experiment(bench: Bench, study: Study, found: Children) -> None:
    """Finetune children with several losses, budgets and beginnings."""
    scale, seeds = bench.scale, range(bench.scale.seeds)
    child = found[scale.speed, 0][MIP]
    mixes = [mix for size in range(1, 4) for mix in itertools.combinations(LOSSES, size)]
    tasks: list[tuple[str, str, int, float | None, dict[str, Any]]] = []  # experiment, arm, seed, x, task
    for mix, seed in itertools.product(mixes, seeds):
        task = {"architecture": plain(child), "training": weights(mix), "seed": seed}
        task = adopted(child, seed) if mix == ADOPTED else task
        tasks.append(("losses", name_of(mix), seed, None, task))
    for tokens, seed in itertools.product((*scale.budgets, scale.finetune), seeds):
        task = adopted(child, seed)
        if tokens != scale.finetune:  # the schedule ends with the budget
            settings = {**weights(ADOPTED), "budget": {"tokens": tokens}}
            task = {"architecture": plain(child), "training": settings, "seed": seed}
        tasks.append(("budget", "child", seed, float(tokens), task))
    for speed, seed in itertools.product(scale.speeds, seeds):
        tasks.append(("gkd", "after", seed, speed, adopted(found[speed, seed][MIP], seed)))
    for arm, seed in itertools.product(("random from the library", "random weights", "parent, random weights"), seeds):
        drawn = found[scale.speed, seed].get("random")
        if arm == "parent, random weights":
            start = plain(bench.space.problem(1.0).parent)
        elif drawn is None:
            continue
        else:
            start = plain(drawn)
        task = {"architecture": start, "training": weights(ADOPTED), "seed": seed}
        task |= {"weights": "pieces" if arm == "random from the library" else "random"}
        tasks.append(("beginnings", arm, seed, None, task))
    results = bench.finetuned([task for *_, task in tasks], f"global distillation on {FINETUNE}")
    for (experiment, arm, seed, x, _), metrics in zip(tasks, results, strict=True):
        record_child(study, experiment, arm, seed, metrics, x)
    _losses(bench, study)
    _gains(bench, study)
    _beginnings(bench, study)


def _kl(study: Study, experiment: str, arm: str, x: float | None = None) -> Any:
    rows = study.frame(experiment)
    rows = rows[(rows["metric"] == "kl") & (rows["arm"] == arm)]
    return (rows if x is None else rows[rows["x"] == x]).set_index("seed")["value"].sort_index()


def _before(study: Study, speed: float) -> float:
    """Return the KL of the program's child of the first draw, before finetuning."""
    return float(_kl(study, "searches", MIP, speed)[0])


def _less(worse: Any, better: Any) -> Interval:
    return interval((worse - better).to_numpy() if hasattr(worse, "to_numpy") else worse - better.to_numpy())


def _losses(bench: Bench, study: Study) -> None:
    scale = bench.scale
    adopted = _kl(study, "losses", name_of(ADOPTED))
    note = f"{scale.finetune} tokens, at {scale.speed:g} times the speed; seeds are orders of the sequences"
    compared: tuple[tuple[tuple[str, ...], str, str], ...] = (
        (("lm",), "lm-alone", "the LM loss alone gives a worse child than cosine and KL"),
        (("kl",), "kl-alone", "cosine and KL give a better child than KL alone"),
        (("cosine",), "cosine-alone", "cosine and KL give a better child than cosine alone"),
        (LOSSES, "lm-added", "a child without the LM loss is better than with it"),
    )
    for mix, claim, statement in compared:
        add_claim(
            study,
            _less(_kl(study, "losses", name_of(mix)), adopted),
            claim=claim,
            statement=statement,
            where="table 17",
            paper_value=f"KLD {PAPER_17[mix].split(', ')[2]} and {PAPER_17[ADOPTED].split(', ')[2]}",
            seeds=scale.seeds,
            note=note,
        )
    rows = []
    for mix, paper in PAPER_17.items():
        if not mix:
            rows.append(["none (before)", f"{_before(study, scale.speed):.4f}", "", paper])
            continue
        frame = study.frame("losses")
        loss = frame[(frame["arm"] == name_of(mix)) & (frame["metric"] == "loss")]["value"].mean()
        values = _kl(study, "losses", name_of(mix))
        rows.append([name_of(mix), f"{values.mean():.4f} ± {values.std(ddof=1):.4f}", f"{loss:.4f}", paper])
    caption = "± is one standard deviation over seeds; the paper's figures are MMLU, MT-Bench and validation KLD."
    study.figures.append(Table(["losses", "KL", "LM loss", "paper"], rows, title="Losses", caption=caption))


def _gains(bench: Bench, study: Study) -> None:
    scale = bench.scale
    for speed in scale.speeds:
        before = _kl(study, "searches", MIP, speed)
        add_claim(
            study,
            _less(before, _kl(study, "gkd", "after", speed)),
            claim=f"gkd-{speed:g}",
            statement="global distillation lowers the child's loss",
            where="table 16",
            paper_value="82.55 and 85.10",
            seeds=scale.seeds,
            note=f"{scale.finetune} tokens, at {speed:g} times the speed, KL {before.mean():.3f} before; seeds are "
            "draws of score text and orders of the sequences",
        )
    most = scale.budgets[-1]
    add_claim(
        study,
        _less(*(_kl(study, "budget", "child", float(tokens)) for tokens in (most, scale.finetune))),
        claim="gkd-tokens",
        statement="more tokens of global distillation give a better child",
        where="table 6",
        paper_value="97.79, 98.47 and 99.63 % with 0.72, 2.9 and 8.68 billion",
        seeds=scale.seeds,
        note=f"{most} and {scale.finetune} tokens",
    )
    rows = [["0", f"{_before(study, scale.speed):.4f}"]]
    for tokens in (*scale.budgets, scale.finetune):
        values = _kl(study, "budget", "child", float(tokens))
        rows.append([str(tokens), f"{values.mean():.4f} ± {values.std(ddof=1):.4f}"])
    caption = f"The child of {scale.speed:g} times the speed; ± is one standard deviation over orders of the sequences."
    study.figures.append(Table(["tokens", "KL"], rows, title="Tokens of global distillation", caption=caption))


def _beginnings(bench: Bench, study: Study) -> None:
    scale = bench.scale
    ours = _kl(study, "gkd", "after", scale.speed)
    paper = {
        "random from the library": "84.30 and 74.01",
        "random weights": "84.30 and 16.02",
        "parent, random weights": "84.30 and 16.46",
    }
    for number, (arm, value) in enumerate(paper.items()):
        values = _kl(study, "beginnings", arm)
        if len(values) != len(ours):
            continue
        add_claim(
            study,
            _less(values, ours),
            claim=("random-gkd", "random-weights", "random-parent")[number],
            statement=f"after global distillation, the searched child is better than: {arm}",
            where="table 15",
            paper_value=value,
            seeds=scale.seeds,
            note=f"{scale.finetune} tokens of distillation, the paper used 10 billion; seeds are draws of score text "
            "and orders of the sequences",
        )
