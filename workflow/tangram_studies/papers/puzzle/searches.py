"""Searches at equal speed: tables 12 to 15 before finetuning; figure 7: objectives; figures 6 and 8: places of cuts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tangram.blocks.architecture import Architecture, from_json
from tangram.blocks.base import NO_OP
from tangram.errors import TangramError
from tangram.report.document import Figure, Table
from tangram.report.drawing import new_figure, render
from tangram_studies.papers.puzzle.common import Bench, add_claim, record_child
from tangram_studies.papers.puzzle.space import Space, plain
from tangram_studies.plots import lines_figure
from tangram_studies.study import Claim, Study, interval

MIP = "MIP on KL"
OBJECTIVES = {"MIP on LM loss": "lm_loss_increase", "MIP on cosine": "cosine_distance"}
RIVALS = {
    "no-op only": "no-op-only",
    "greedy": "greedy",
    "same pair everywhere": "same-pair",
    "random": "random",
    "most parameters": "max-parameters",
}
CLAIMS = {  # arm: claim, statement, place, the paper's figures
    "no-op only": (
        "no-op",
        "the full space gives a better child than no-ops alone",
        "table 12",
        "MMLU 78.39 and 75.40",
    ),
    "greedy": ("greedy", "the program gives a better child than the greedy search", "table 13", "MMLU 78.39 and 70.74"),
    "most parameters": (
        "parameters",
        "the program gives a better child than the one with the most parameters",
        "table 14",
        "MMLU 78.39 and 23.12",
    ),
    "random": (
        "random",
        "the program gives a better child than random choices",
        "table 15",
        "84.30 and 74.01, with GKD",
    ),
    "MIP on LM loss": (
        "lm-loss",
        "scores by KL give a better child than scores by LM loss",
        "figure 7",
        "74.74 and 73.64 in the middle",
    ),
    "MIP on cosine": (
        "cosine",
        "scores by KL give a better child than scores by the cosine of the last hidden states",
        "not in the paper; the default of its authors' later code",
        "-",
    ),
}


def arms(space: Space, speed: float, seed: int) -> dict[str, Architecture]:
    """Return every search's architecture at one speed with the scores of one draw of text; those that exist."""
    searches: dict[str, Callable[[], Architecture]] = {MIP: lambda: space.solve(speed, seed)}
    searches |= {
        name: lambda objective=objective: space.solve(speed, seed, objective)  # type: ignore[misc]
        for name, objective in OBJECTIVES.items()
    }
    searches |= {name: lambda rival=rival: space.rival(rival, speed, seed) for name, rival in RIVALS.items()}  # type: ignore[misc]
    found = {}
    for name, search in searches.items():
        try:
            found[name] = search()
        except TangramError:  # no architecture within the limit
            continue
    return found


def found_by_arms(space: Space, speed: float, seed: int) -> dict[str, dict[str, Any]]:
    """Return the result of `arms` as JSON."""
    return {name: plain(architecture) for name, architecture in arms(space, speed, seed).items()}


def best(space: Space, speed: float) -> dict[str, Any]:
    """Return the solver's best architecture as JSON."""
    return plain(space.solve(speed))


def search_experiment(bench: Bench, study: Study) -> dict[tuple[float, int], dict[str, Architecture]]:
    """Measure the children of all searches; return their architectures by speed and seed."""
    scale = bench.scale
    keys = list(itertools.product(scale.speeds, range(scale.seeds)))
    tasks = [{"space": bench.space, "speed": speed, "seed": seed} for speed, seed in keys]
    results = bench.work.run(found_by_arms, tasks, "searches")
    found = {
        key: {arm: from_json(each) for arm, each in result.items()} for key, result in zip(keys, results, strict=True)
    }
    flat = [(key, arm, architecture) for key, by_arm in found.items() for arm, architecture in by_arm.items()]
    for ((speed, seed), arm, _), metrics in zip(flat, bench.children([a for *_, a in flat]), strict=True):
        record_child(study, "searches", arm, seed, metrics, speed)
    _claims(bench, study)
    _show(bench, study, found)
    _map(bench, study)
    return found


def _paired(bench: Bench, study: Study, arm: str) -> pd.DataFrame | None:
    """Return KL of an arm less that of the program, by seed and speed; None if the arm found no child somewhere."""
    rows = study.frame("searches").query("metric == 'kl'")
    tables = [rows[rows["arm"] == name].pivot(index="seed", columns="x", values="value") for name in (arm, MIP)]
    difference = tables[0] - tables[1]
    complete = difference.shape == (bench.scale.seeds, len(bench.scale.speeds)) and difference.notna().all(axis=None)
    return difference if complete else None


def _claims(bench: Bench, study: Study) -> None:
    scale = bench.scale
    targets = ", ".join(f"{speed:g}" for speed in scale.speeds)
    for arm, (claim, statement, where, paper) in CLAIMS.items():
        difference = _paired(bench, study, arm)
        if difference is None:
            study.notes.append(f"The search '{arm}' finds no child of one of the targets for every draw of scores.")
            continue
        by_target = ", ".join(f"{value:+.3f}" for value in difference.mean())
        add_claim(
            study,
            interval(difference.mean(axis=1).to_numpy()),
            claim=claim,
            statement=statement,
            where=where,
            paper_value=paper,
            seeds=scale.seeds,
            note=f"before finetuning, mean over the targets {targets} (times the packed parent's predicted speed), "
            f"where it is {by_target}; seeds are draws of score text",
        )
    gap = _paired(bench, study, "MIP on LM loss")
    if gap is not None:
        add_claim(
            study,
            interval((gap[scale.speeds[-1]] - gap[scale.speeds[0]]).to_numpy()),
            claim="lm-loss-gap",
            statement="the advantage of scores by KL over LM loss grows with the compression",
            where="figure 7",
            paper_value="0.01, 1.10 and 0.52 points",
            seeds=scale.seeds,
            note=f"at {scale.speeds[-1]:g} less at {scale.speeds[0]:g} times the speed",
        )


def _show(bench: Bench, study: Study, found: Mapping[tuple[float, int], Mapping[str, Architecture]]) -> None:
    rows = study.frame("searches")
    order = [MIP, *OBJECTIVES, *RIVALS]
    cells = []
    for arm in order:
        row = [arm]
        for speed in bench.scale.speeds:
            part = rows[(rows["arm"] == arm) & (rows["x"] == speed)]
            kl, loss = (part[part["metric"] == name]["value"].to_numpy() for name in ("kl", "loss"))
            speeds = [bench.space.speed(each[arm]) for (s, _), each in found.items() if s == speed and arm in each]
            row += [f"{kl.mean():.3f}", f"{loss.mean():.3f}", f"{np.mean(speeds):.3f}"] if len(kl) else ["-", "-", "-"]
        cells.append(row)
    columns = ["search"]
    for speed in bench.scale.speeds:
        columns += [f"KL at {speed:g}", "LM loss", "speed"]
    caption = (
        "True KL and LM loss of the assembled children on held-out passages, nats per token, means over draws of score "
        "text; speed: predicted, over the packed parent's."
    )
    study.figures.append(Table(columns, cells, title="Searches at equal speed", caption=caption))
    curves = rows[rows["metric"] == "kl"]
    study.figures.append(
        lines_figure(
            "searches",
            "KL over speed",
            "Assembled children before finetuning; bands: 95 % over draws of score text.",
            {"": curves},
            "predicted speed over the packed parent's",
            "KL, nats per token",
            order,
            log="y",
        )
    )


def shares(bench: Bench, architecture: Architecture, kind: str) -> list[float]:
    """Return every layer's cost of a kind of subblock over the parent's."""
    problem, (batch,) = bench.space.problem(1.0), bench.scale.scenario.batch_sizes
    usage = [
        problem.costs.usage("throughput", "chat", batch, layer, kind, getattr(choice, kind))
        for layer, choice in enumerate(architecture.layers)
    ]
    return [value / problem.costs.usage("throughput", "chat", batch, 0, kind, "parent") for value in usage]


def _map(bench: Bench, study: Study) -> None:
    """Solve many targets, and show which subblocks they cut (figures 6 and 8)."""
    tasks = [{"space": bench.space, "speed": speed} for speed in bench.scale.map_speeds]
    solved = list(map(from_json, bench.work.run(best, tasks, "targets of the map")))
    kept = {kind: np.array([shares(bench, a, kind) for a in solved]) for kind in ("attention", "ffn")}
    for kind, grid in kept.items():
        for speed, values in zip(bench.scale.map_speeds, grid, strict=True):
            for layer, value in enumerate(values):
                study.record("map", f"{kind} {layer}", 0, "share of the parent's time", value, speed)
    study.figures.append(_heat_map(bench.scale.map_speeds, kept))
    removed = {
        kind: [sum(getattr(layer, kind) == NO_OP for layer in a.layers) for a in solved]
        for kind in ("attention", "ffn")
    }
    mild = next((i for i, _ in enumerate(solved) if removed["attention"][i] + removed["ffn"][i]), 0)
    layers = bench.lab.layers
    thirds = [slice(0, layers // 3), slice(layers // 3, 2 * layers // 3), slice(2 * layers // 3, layers)]
    cut = [float(np.mean([1 - kept[kind][:, third].mean() for kind in kept])) for third in thirds]
    text = (
        f"no-op attentions by target: {', '.join(map(str, removed['attention']))}; no-op FFNs: "
        f"{', '.join(map(str, removed['ffn']))}; time cut in the first, middle and last third of the layers: "
        f"{', '.join(f'{100 * value:.0f} %' for value in cut)}"
    )
    ffn_last = removed["ffn"][mild] <= removed["attention"][mild] and not any(removed["ffn"][: len(solved) // 2])
    middle = cut[1] < min(cut[0], cut[2])
    for claim, statement, holds in (
        ("attention-first", "attention is removed at lenient targets already, and FFNs are never skipped", ffn_last),
        ("middle-kept", "cuts fall on the first and the last layers, and the middle ones stay", middle),
    ):
        study.claims.append(
            Claim(
                claim=claim,
                statement=statement,
                where="figures 6 and 8",
                measured=text,
                verdict="supported" if holds else "refuted",
                seeds=1,
                note="an identity of the solved programs of one score table; the FFNs' half of the first statement is "
                "judged at the milder half of the targets",
            )
        )


def _heat_map(speeds: Sequence[float], kept: Mapping[str, np.ndarray]) -> Figure:
    def draw() -> object:
        figure, axes = new_figure(2, 1, 10.0, 3.6, sharey=True)
        for axis, (kind, grid) in zip(axes, kept.items(), strict=True):
            axis.pcolormesh(grid, cmap="Greys", vmin=0, vmax=1)
            axis.set_title(kind)
            axis.set_xlabel("layer")
            axis.set_yticks(np.arange(len(speeds)) + 0.5, [f"{speed:g}" for speed in speeds])
        axes[0].set_ylabel("target, times the parent's speed")
        return figure

    caption = "Time of every subblock over the parent's, by target; black is the parent's, white is removed."
    svg = render("puzzle-map", "time by layer and target", draw)  # type: ignore[arg-type]
    return Figure(svg, caption, "Where the cuts fall")
