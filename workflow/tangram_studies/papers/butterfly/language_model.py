"""Quality and cost of structured operators in a language model, compared with GQA, width, linear and no-op.

2007.08864 leaves replacing several layers, and language models, to future work. Here every piece passes through the
pipeline's stages: closed-form initialization on the parent's activations, block-wise distillation, replace-1-block
score, and time of its lowered form beside the parent's subblock.
"""

# ruff: noqa: RUF001 - the typographic signs are meant

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from tangram.activations import StreamedActivations
from tangram.blocks import get_block
from tangram.config import BlockDistillation, Costs, Scenario
from tangram.costs.torch_engine import measure
from tangram.library.distill import LayerDistillation
from tangram.models.families import Shape, decoder_layers, shape_of
from tangram.models.loading import load_model
from tangram.models.replace import replace_subblocks
from tangram.report.style import variant_colors
from tangram.scores.replace_one import ReplaceOne
from tangram_studies.plots import points_figure
from tangram_studies.study import Claim, Study, interval, print_progress

KINDS = ("attention", "ffn")
PHASES = ("prefill", "decode")
Roles = dict[str, dict[str, str]]  # variants by kind and role
Points = dict[tuple[str, str], dict[str, tuple[float, float]]]  # (cost, loss) by kind and phase, and by variant


def variants_for(hidden: int, kind: str) -> dict[str, str]:
    """Return the variants to compare by role, such as the gadget at k = n/4 and low rank of equal rank.

    Args:
        hidden: the model's width.
        kind: ``'attention'`` or ``'ffn'``.
    """
    k = hidden // 4
    equal = max(1, hidden // 15 if kind == "attention" else hidden // 19)
    other = {"gqa": "gqa-1"} if kind == "attention" else {"half width": "width-0.5"}
    return {
        "gadget": f"butterfly-{k}",
        "low rank, equal weights": f"lowrank-{equal}",
        "low rank, equal rank": f"lowrank-{k}",
        "Monarch": "monarch",
        "half random": f"ntk-{k}",
        **other,
        "linear": "linear",
        "no-op": "no-op",
    }


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of the Pareto-optimal points ``(cost, loss)``."""
    return [
        name
        for name, (cost, loss) in points.items()
        if not any(c <= cost and q <= loss and (c, q) != (cost, loss) for c, q in points.values())
    ]


def score_pieces(
    study: Study,
    parent: str | Path,
    distill: torch.Tensor,
    score: torch.Tensor,
    layers: Sequence[int],
    device: str,
    dtype: str,
) -> None:
    """Distill and score every variant on some layers; arguments as in `compare_pieces`."""
    model = load_model(parent, dtype, device).requires_grad_(False)
    states, scored = StreamedActivations(model, distill, 4), StreamedActivations(model, score, 4)
    scorer = ReplaceOne(model, scored, score, position_stride=4, batch_size=4)
    settings = BlockDistillation(epochs=1)
    for layer in layers:
        problem = LayerDistillation(model, layer, states.hidden(layer), states.hidden(layer + 1), settings)
        for kind in KINDS:
            print_progress(f"butterfly: layer {layer}, {kind}")
            for variant in variants_for(model.config.hidden_size, kind).values():
                piece = problem.distill(kind, variant, seed=0)
                overrides = get_block(kind, variant, Shape.of(model.config)).overrides()
                parent_layer = decoder_layers(model)[layer]
                replaced = replace_subblocks(parent_layer, model.config, layer, overrides, {kind: piece.weights})
                rows = scorer.score(layer, replaced)
                kl = next(float(row["value"]) for row in rows if row["metric"] == "kl")
                weights = sum(tensor.numel() for tensor in piece.weights.values())
                study.record(f"score, {kind}", variant, layer, "KL(parent ‖ child), nats", kl)
                study.record(f"weights, {kind}", variant, layer, "weights", weights)


def time_pieces(study: Study, parent: str | Path, device: str, dtype: str) -> None:
    """Time every variant beside the parent's subblock; arguments as in `compare_pieces`."""
    scenario = {"chat": Scenario(prefill=128, generate=32, batch_sizes=(1,))}
    costs = Costs(repeats=5, stack_megabytes=48)
    for kind in KINDS:
        for variant in variants_for(shape_of(parent).hidden, kind).values():
            if variant.startswith("ntk-"):
                continue  # same shapes as low rank, hence the same cost
            print_progress(f"butterfly: time of {kind} {variant}")
            for row in measure(parent, kind, variant, costs, scenario, device, dtype):
                ratio = row["seconds"] / row["parent_seconds"]
                study.record(f"cost, {kind}, {row['phase']}", variant, 0, "of the parent's own subblock", ratio)


def compare_pieces(
    study: Study,
    parent: str | Path,
    distill: torch.Tensor,
    score: torch.Tensor,
    layers: Sequence[int],
    device: str,
    dtype: str,
) -> None:
    """Distill, score and time every variant on some layers; the layers are the repetitions.

    Args:
        study: study to which measurements, claims and figures are added.
        parent: the parent's folder.
        distill: tokens for distillation, ``(sequences, length)``.
        score: tokens for scores, ``(sequences, length)``.
        layers: indices of layers, increasing.
        device: device of the model.
        dtype: dtype of weights and activations.
    """
    score_pieces(study, parent, distill, score, layers, device, dtype)
    time_pieces(study, parent, device, dtype)
    conclude(study, shape_of(parent))


def conclude(study: Study, shape: Shape) -> None:
    """Add claims and figures from the measurements of `score_pieces` and `time_pieces` on a parent of this shape."""
    roles = {kind: variants_for(shape.hidden, kind) for kind in KINDS}
    layers = sorted(set(study.frame("score, ffn")["seed"]))
    numbers = ", ".join(map(str, layers))
    note = f"layers {numbers} of {shape.num_layers}, which stand for seeds; one epoch of BLD; KL on few tokens"
    _claim_controls(study, roles, len(layers), note)
    points = _points(study, roles)
    _claim_pareto(study, points, len(layers), note)
    _draw(study, roles, points)


def _claim_controls(study: Study, roles: Roles, seeds: int, note: str) -> None:
    for short, role, statement in (
        (
            "11a beside low rank, equal weights",
            "low rank, equal weights",
            "the gadget (k = n/4) loses less than low rank of equal weights",
        ),
        ("11b beside low rank, equal rank", "low rank, equal rank", "… than low rank of equal rank"),
    ):
        logs = []
        for kind in KINDS:
            table = study.frame(f"score, {kind}").pivot(index="seed", columns="arm", values="value").clip(lower=1e-9)
            logs.append(np.log((table[roles[kind][role]] / table[roles[kind]["gadget"]]).to_numpy()))
        study.claims.append(
            Claim.from_interval(
                interval(np.mean(logs, axis=0)),
                claim=short,
                statement=statement,
                where="a control that the paper lacks",
                unit="log KL, low rank − gadget",
                seeds=seeds,
                note=note,
            )
        )


def _points(study: Study, roles: Roles) -> Points:
    """Return (cost, loss) of every variant and of the parent, by kind and phase."""
    points: Points = {}
    for kind in KINDS:
        scores = study.frame(f"score, {kind}").groupby("arm")["value"]
        losses = {variant: float(values.mean()) for variant, values in scores}
        for phase in PHASES:
            times = study.frame(f"cost, {kind}, {phase}").set_index("arm")["value"].to_dict()
            points[kind, phase] = {
                variant: (float(times[variant.replace("ntk-", "lowrank-")]), losses[variant])
                for variant in roles[kind].values()
            }
            points[kind, phase]["parent"] = (1.0, 0.0)
    return points


def _claim_pareto(study: Study, points: Points, seeds: int, note: str) -> None:
    optimal = {
        f"{kind} {phase}": [v for v in pareto(variants) if v.startswith(("butterfly", "monarch"))]
        for (kind, phase), variants in points.items()
    }
    dominated = [name for name, variants in optimal.items() if not variants]
    on_front = "; ".join(f"{name}: {', '.join(variants)}" for name, variants in optimal.items() if variants)
    study.claims.append(
        Claim(
            claim="11c Pareto",
            statement="butterflies (or Monarch) are a good choice somewhere between quality and time",
            where="section 4.2, 'replacing multiple layers'",
            measured="on the front: "
            + (on_front or "nowhere")
            + (f"; dominated: {', '.join(dominated)}" if dominated else ""),
            verdict="supported" if on_front else "refuted",
            seeds=seeds,
            note=f"{note}; by means, without intervals; times are of the lowered forms, batch 1, 128 tokens of prompt",
        )
    )


def _draw(study: Study, roles: Roles, points: Points) -> None:
    panels = {
        f"{'FFN' if kind == 'ffn' else kind}, {phase}": pd.DataFrame(
            [{"arm": v, "x": cost, "value": max(loss, 1e-4)} for v, (cost, loss) in variants.items() if v != "parent"]
        )
        for (kind, phase), variants in points.items()
    }
    colors = variant_colors([variant for kind in KINDS for variant in roles[kind].values()])
    colors["no-op"] = "#606870"
    for phase in PHASES:
        study.figures.append(
            points_figure(
                f"pieces-{phase}",
                f"Pieces between quality and time, {phase}",
                "Mean replace-1-block KL over the layers; time over the parent's own subblock. Left and low is good.",
                {name: rows for name, rows in panels.items() if name.endswith(phase)},
                "time / parent's subblock",
                "KL(parent ‖ child), nats",
                colors,
                log="y",
            )
        )
