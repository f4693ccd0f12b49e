"""Seeded score, cost and calibration tables, without a model."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from tangram.config import Scenario, Target
from tangram.costs.calibration import STOCK
from tangram.search.cost_model import CostModel
from tangram.search.problem import Problem, options_of

ATTENTION = {"gqa-2": 0.8, "gqa-1": 0.7, "linear": 0.35, "no-op": 0.0}
FFN = {"width-0.75": 0.8, "width-0.5": 0.6, "width-0.25": 0.35, "linear": 0.15, "no-op": 0.0}
VARIANTS = {"attention": {"gqa-1": 0.7, "no-op": 0.0}, "ffn": {"width-0.5": 0.6, "no-op": 0.0}}  # few: to try them all
PRECISIONS = {"parent@bf16": 0.6, "parent@int8": 0.4}
CHAT = Scenario(prefill=128, generate=32, batch_sizes=(2, 8))
SUMMARY = Scenario(prefill=512, generate=8, batch_sizes=(1, 4))


@dataclass
class Library:
    scores: pd.DataFrame
    costs: pd.DataFrame
    calibration: pd.DataFrame
    scenarios: dict[str, Scenario]
    num_layers: int

    def problem(self, target: Target | dict) -> Problem:
        costs = CostModel(self.costs, self.calibration, self.scenarios)
        return Problem(options_of(self.scores, "kl", self.num_layers), costs, Target.model_validate(target))


def limit(quantity: str, value: float, scenario: str | None = "chat", relative: bool = True) -> dict:
    side = "min" if quantity == "throughput" else "max"
    return {"quantity": quantity, side: value, "scenario": scenario, "relative_to_parent": relative}


def score(layer: int, kind: str, variant: str, value: float, metric: str = "kl") -> dict:
    row = {"layer": layer, "kind": kind, "variant": variant, "metric": metric, "value": value}
    return {**row, "standard_error": 0.0, "tokens": 100}


def cost(
    kind: str, variant: str, scenario: str, phase: str, batch: int, seconds: float, parent: float, **sizes
) -> dict:
    row = {"layer_class": 0, "kind": kind, "variant": variant, "engine": "torch", "device": "cpu"}
    row |= {"scenario": scenario, "phase": phase, "batch": batch, "seconds": seconds, "seconds_spread": 0.0}
    row |= {"parent_seconds": parent, "ratio_error": 0.0}
    return {**row, "parameters": 0, "parameter_bytes": 0, "kv_bytes_per_token": 0, **sizes}


def library(
    seed: int,
    num_layers: int,
    attention: dict[str, float] = ATTENTION,
    ffn: dict[str, float] = FFN,
    scenarios: dict[str, Scenario] | None = None,
    pairs: float = 0.0,
    noise: float = 0.002,
    head: dict[str, float] | None = None,
) -> Library:
    """Build tables; ``attention``, ``ffn`` and ``head`` map variants to their cost relative to the parent's subblock.

    Every job has its own drift of the clock; ``pairs`` is the share of pairs that are scored as a whole;
    ``noise`` may make a score negative.
    """
    random = np.random.default_rng(seed)
    scenarios = scenarios or {"chat": Scenario(prefill=128, generate=32, batch_sizes=(4,))}
    scores, costs, calibration = [], [], []
    kinds = {"attention": attention, "ffn": ffn}
    for layer in range(num_layers):
        for kind, variants in kinds.items():
            sensitivity = random.gamma(1.0, 0.1)
            for variant, ratio in variants.items():
                loss = sensitivity * (1.1 - ratio) ** 2 * random.lognormal(0, 0.3)
                scores.append(score(layer, kind, variant, loss + random.normal(0, noise)))
        for a in attention:
            for f in ffn:
                if random.random() < pairs:
                    scores.append(score(layer, "block", f"{a}+{f}", random.gamma(1.0, 0.2)))
    for variant, ratio in (head or {}).items():
        scores.append(score(0, "head", variant, random.gamma(1.0, 0.1) * (1.1 - ratio) ** 2))
    for kind, variants in {**kinds, "model": {}, "head": head or {}}.items():
        for variant, ratio in {"parent": 1.0, **variants}.items():
            drift = random.uniform(0.8, 1.25)
            width = 1 if variant.endswith("@int8") else 2 if variant.endswith("@bf16") else 4
            count = int(4e6) if "@" in variant else int(4e6 * ratio)
            sizes = {"parameters": count, "parameter_bytes": width * count, "kv_bytes_per_token": 0}
            if kind == "attention" and variant.startswith(("parent", "gqa")):
                sizes["kv_bytes_per_token"] = 8192 * (int(variant[4:]) if variant.startswith("gqa") else 4)
            for name, scenario in scenarios.items():
                for batch in scenario.batch_sizes:
                    for phase, base in (("prefill", 1e-3 * batch * scenario.prefill / 128), ("decode", 1e-3)):
                        parent = base * drift * (1 + 0.1 * batch) * (0.8 if kind == "attention" else 1.3)
                        seconds = parent * ratio * random.uniform(0.9, 1.1)
                        costs.append(cost(kind, variant, name, phase, batch, seconds, parent, **sizes))
    for name, scenario in scenarios.items():
        for batch in scenario.batch_sizes:
            for phase in ("prefill", "decode"):
                row = {"model": "parent", "scenario": name, "phase": phase, "batch": batch, "subblock_seconds": 1.0}
                scale = random.uniform(0.9, 1.1)
                calibration.append({**row, "fixed_seconds": 0.1, "measured_seconds": 1.1, "scale": scale})
    frames = (pd.DataFrame(rows) for rows in (scores, costs, calibration))
    return Library(*frames, scenarios, num_layers)


def with_stock_parent(tables: Library, factors: dict[str, float]) -> Library:
    """Add the stock parent to the calibration, slower than the packed one by a factor per phase."""
    packed = tables.calibration[tables.calibration["model"] == "parent"]
    stock = packed.assign(model=STOCK, measured_seconds=packed["measured_seconds"] * packed["phase"].map(factors))
    return replace(tables, calibration=pd.concat([stock, tables.calibration], ignore_index=True))


def in_llama_cpp(tables: Library) -> Library:
    """Return the tables as of llama.cpp, with the references that are timed there: the parent's pieces in F16."""
    parents = tables.costs[(tables.costs["variant"] == "parent") & (tables.costs["kind"] != "model")]
    costs = pd.concat([tables.costs, parents.assign(variant="parent@f16")], ignore_index=True)
    return replace(tables, costs=costs.assign(engine="llama.cpp"))


def by_sum_of_no_ops(tables: Library) -> list[int]:
    """Return the layers, those whose two no-ops lose least first."""
    rows = tables.scores[tables.scores["variant"] == "no-op"]
    return rows.groupby("layer")["value"].sum().sort_values().index.tolist()
