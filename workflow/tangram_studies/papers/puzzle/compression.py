"""Beside other compression, at measured speed: table 18 (Wanda 2:4, low rank), tables 1, 2 and figure 5 (the frontier).

Speeds are of whole models of the architecture, in one process, round-robin with the packed parent.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tangram.blocks.architecture import Architecture, LayerChoice, from_json
from tangram.blocks.base import HEAD, KINDS, PARENT
from tangram.costs import torch_engine
from tangram.errors import TangramError
from tangram.report.document import Table
from tangram.search.drop_layers import drop_whole_layers
from tangram_studies.papers.puzzle import laboratory
from tangram_studies.papers.puzzle.common import (
    BASE,
    DISTILL,
    Bench,
    Timing,
    add_claim,
    record_child,
    settings_of,
    train_library,
)
from tangram_studies.papers.puzzle.laboratory import Lab
from tangram_studies.papers.puzzle.searches import MIP
from tangram_studies.papers.puzzle.space import SCENARIO, plain
from tangram_studies.papers.puzzle.training import Children, adopted
from tangram_studies.papers.puzzle.work import Work
from tangram_studies.plots import colors_of, points_figure
from tangram_studies.study import Claim, Study, interval

AT_ONCE = 4  # architectures that are timed together, beside the packed parent
WANDA = "Wanda 2:4"


def speeds_of(lab: Lab, timing: Timing, architectures: Mapping[str, Any]) -> dict[str, float]:
    """Return the measured throughput of whole models over the packed parent's; nothing else must run meanwhile."""
    costs, workload = settings_of(timing)
    models = {name: from_json(architecture) for name, architecture in architectures.items()}
    models = {PARENT: Architecture((LayerChoice(),) * lab.layers), **models}
    seconds = torch_engine.measure_whole(lab.parent, models, costs, {SCENARIO: workload}, lab.device, lab.dtype)
    (batch,) = workload.batch_sizes
    prefill, decode = (seconds[SCENARIO, phase, batch] for phase in ("prefill", "decode"))
    times = {name: prefill[name] + workload.generate * decode[name] for name in prefill}
    return {name: times[PARENT] / time for name, time in times.items()}


def measured_speeds(bench: Bench, alone: Work, architectures: Mapping[str, Architecture]) -> dict[str, float]:
    """Return the measured speeds of architectures by name, a few at a time."""
    bench.work.close()
    speeds = dict[str, float]()
    names = list(architectures)
    for start in range(0, len(names), AT_ONCE):
        group = {name: plain(architectures[name]) for name in names[start : start + AT_ONCE]}
        costs = {**bench.scale.timing["costs"], "calibration_repeats": bench.scale.rounds}
        task = {"lab": bench.lab, "timing": {**bench.scale.timing, "costs": costs}, "architectures": group}
        (part,) = alone.run(speeds_of, [task], "speeds")
        speeds |= part
    return speeds


def low_rank(bench: Bench, rank: int) -> Architecture:
    """Return the parent with matrices of one rank in all layers."""
    return Architecture((LayerChoice(f"lowrank-{rank}", f"lowrank-{rank}"),) * bench.lab.layers)


def in_precision(bench: Bench, precision: str) -> Architecture:
    """Return the parent with all subblocks and the head in one precision."""
    variant = f"{PARENT}@{precision}"
    return Architecture((LayerChoice(variant, variant),) * bench.lab.layers, variant)


def frontier(bench: Bench, found: Children) -> dict[str, Architecture]:
    """Return the architectures to compare by name: the program's, and what a user would do instead."""
    scale, space = bench.scale, bench.space
    compared = {f"Tangram {speed:g}": found[speed, 0][MIP] for speed in scale.speeds}
    (importance,) = bench.work.run(laboratory.influence, [{"lab": bench.lab, "text": "score-0"}], "block influence")
    for speed in scale.speeds:
        if (same := found[speed, 0].get("same pair everywhere")) is not None:
            compared[f"same pair {speed:g}"] = same
        try:
            compared[f"layers dropped {speed:g}"] = drop_whole_layers(space.problem(speed), importance)[0]
        except TangramError:
            continue
    compared |= {f"low rank {rank}": low_rank(bench, rank) for rank in scale.ranks}
    return compared | {f"all {precision}": in_precision(bench, precision) for precision in scale.precisions}


def _make_pieces(bench: Bench) -> None:
    """Make the pieces that the base library lacks: low rank, and the parent in other precisions."""
    scale, layers = bench.scale, range(bench.lab.layers)
    ranks = [f"lowrank-{rank}" for rank in scale.ranks]
    train_library(bench.lab, bench.work, BASE, DISTILL, dict.fromkeys(KINDS, ranks), layers, 0)
    tasks = [
        {"lab": bench.lab, "library": BASE, "text": DISTILL, "kind": kind, "variant": f"{PARENT}@{p}", "layer": layer}
        for p in scale.precisions
        for kind, layer in [*itertools.product(KINDS, layers), (HEAD, 0)]
    ]
    bench.work.run(laboratory.quantize_piece, tasks, "precisions")
    bench.work.run(laboratory.write_norms, [{"lab": bench.lab, "text": DISTILL}], "norms of inputs")


def compression_experiment(bench: Bench, alone: Work, study: Study, found: Children) -> None:
    """Measure speed and quality of children and their rivals, before and after global distillation."""
    scale = bench.scale
    _make_pieces(bench)
    compared = frontier(bench, found)
    speeds = measured_speeds(bench, alone, compared)
    for (name, _), metrics in zip(compared.items(), bench.children(list(compared.values())), strict=True):
        record_child(study, "frontier", name, 0, metrics, speeds[name])
    ours = f"Tangram {scale.speed:g}"
    rank = max((r for r in scale.ranks if speeds[f"low rank {r}"] >= speeds[ours]), default=min(scale.ranks))
    arms: dict[str, tuple[Architecture, str]] = {
        ours: (compared[ours], "pieces"),
        f"low rank {rank}": (compared[f"low rank {rank}"], "pieces"),
        WANDA: (bench.space.problem(1.0).parent, "wanda"),
    }
    tasks: list[tuple[str, int, dict[str, Any]]] = [
        (arm, seed, adopted(a, seed) if arm == ours else {**adopted(a, seed), "weights": w, "keep": False})
        for arm, (a, w) in arms.items()
        for seed in range(scale.seeds)
    ]
    results = bench.finetuned([task for *_, task in tasks], "table 18")
    for (arm, seed, _), metrics in zip(tasks, results, strict=True):
        record_child(study, "table 18", arm, seed, metrics, speeds.get(arm, 1.0))
    wanda = {"lab": bench.lab, "architecture": plain(arms[WANDA][0]), "library": BASE, "weights": "wanda"}
    (before,) = bench.work.run(laboratory.measure_child, [wanda], "Wanda")
    record_child(study, "frontier", WANDA, 0, before, 1.0)
    _claims(bench, study, arms, speeds)
    _show(study, compared, speeds)


def _claims(
    bench: Bench, study: Study, arms: Mapping[str, tuple[Architecture, str]], speeds: Mapping[str, float]
) -> None:
    ours, rank, _ = arms
    rows = study.frame("table 18")
    kl = {
        arm: rows[(rows["arm"] == arm) & (rows["metric"] == "kl")].set_index("seed")["value"].sort_index()
        for arm in arms
    }
    for claim, arm, paper, note in (
        ("low-rank", rank, "99.49 and 88.96 % kept", f"measured speeds {speeds[ours]:.2f} and {speeds[rank]:.2f}"),
        (
            "wanda",
            WANDA,
            "99.49 and 92.23 % kept",
            f"measured speeds {speeds[ours]:.2f} and 1.00: no kernel here multiplies 2:4 matrices faster, so Wanda has "
            "the advantage of a slower model",
        ),
    ):
        add_claim(
            study,
            interval((kl[arm] - kl[ours]).to_numpy()),
            claim=claim,
            statement=f"the searched child is better than {arm}, both after global distillation",
            where="table 18",
            paper_value=paper,
            seeds=bench.scale.seeds,
            note=note,
        )
    points = study.frame("frontier").query("metric == 'kl'")
    below = _below(points)
    study.claims.append(
        Claim(
            claim="frontier",
            statement="children are on the frontier of quality and speed, above uniform choices",
            where="figure 5, tables 1 and 2",
            measured=f"{len(below)} of {len(bench.scale.speeds)} children have a faster rival of smaller KL"
            + (f": {'; '.join(below)}" if below else ""),
            verdict="refuted" if below else "supported",
            seeds=1,
            note="one child per target, before finetuning, at measured speeds; the children are of float32 pieces "
            "alone, and rivals in bf16 and int8 show what precision gives: the main job searches both together",
        )
    )


def _below(points: pd.DataFrame) -> list[str]:
    """Return the children that a rival dominates, each with the first such rival."""
    found = []
    for child in points[points["arm"].str.startswith("Tangram")].itertuples():
        better = points[(points["x"] >= child.x) & (points["value"] < child.value) & (points["arm"] != child.arm)]
        if len(better):
            found.append(f"{child.arm} by {better.iloc[0]['arm']}")
    return found


def _show(study: Study, compared: Sequence[str] | Mapping[str, Any], speeds: Mapping[str, float]) -> None:
    frame = study.frame("frontier")
    rows = []
    for name in [*compared, WANDA]:
        part = frame[frame["arm"] == name].set_index("metric")["value"]
        values = [f"{part[metric]:.4f}" for metric in ("kl", "loss")] + [f"{100 * part['agreement']:.1f}"]
        rows.append([name, f"{speeds.get(name, 1.0):.2f}", *values])
    rows.sort(key=lambda row: float(row[1]))
    columns = ["model", "measured speed", "KL", "LM loss", "agreement, %"]
    caption = "Before finetuning; speed over the packed parent's; nats per token. Wanda has the parent's speed here."
    study.figures.append(Table(columns, rows, title="Beside other compression", caption=caption))
    points = frame[(frame["metric"] == "kl")].assign(value=lambda part: part["value"].clip(lower=1e-5))
    study.figures.append(
        points_figure(
            "frontier",
            "Quality over measured speed",
            "Assembled children and rivals before finetuning.",
            {"": points},
            "speed over the packed parent's",
            "KL, nats per token",
            colors_of(list(dict.fromkeys(points["arm"]))),
            "y",
        )
    )
