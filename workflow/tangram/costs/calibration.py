"""Calibration of the cost model: predict whole models by sums of measured pieces, and fit a scale to measurements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.blocks.base import HEAD, PARENT
from tangram.costs.llama_layers import STUB_PIECE, excess
from tangram.engines import LLAMA_CPP
from tangram.errors import TangramError

if TYPE_CHECKING:
    import pandas as pd

WORKLOAD = ["scenario", "phase", "batch"]
STOCK = "stock parent"  # the calibration's name of the parent as stock transformers runs it, without packed kernels


def steady_seconds(costs: pd.DataFrame) -> pd.Series:
    """Return each row's seconds without the drift of the machine's speed between jobs.

    Every job times the parent's subblock and its variant round-robin, so drift cancels in their ratio. The median of
    the parent's time over all jobs scales the ratio to seconds.

    Args:
        costs: rows of `tables.COSTS`.
    """
    parent = costs.groupby(["layer_class", "kind", *WORKLOAD])["parent_seconds"].transform("median")
    return costs["seconds"] / costs["parent_seconds"] * parent


def sum_of_parts(costs: pd.DataFrame, architecture: Architecture) -> dict[tuple[str, str, int], tuple[float, float]]:
    """Return a model's predicted seconds from the cost table of one engine, by scenario, phase and batch.

    Each value is a pair: the sum over all subblocks with the LM head, and the rest (embedding and final norm).

    Raises:
        TangramError: the table lacks a variant.
    """
    steady = costs.assign(seconds=steady_seconds(costs))
    counts = Counter((kind, variant) for _, kind, variant in architecture.pieces())
    if LLAMA_CPP in set(costs["engine"]) and (stubs := excess(architecture.layers)):
        counts[STUB_PIECE] -= stubs
    sums = {}
    workload: Any  # a tuple, which pandas declares as hashable only
    for workload, rows in steady.groupby(WORKLOAD):
        seconds = rows.set_index(["kind", "variant"])["seconds"].to_dict()
        missing = [
            f"{kind} {variant}" for kind, variant in [*counts, ("model", PARENT)] if (kind, variant) not in seconds
        ]
        if missing:
            raise TangramError(
                f"the cost table lacks {', '.join(missing)} for {workload[0]}, {workload[1]}, batch {workload[2]}; "
                "measure them (rule measure_costs) and collect the table again"
            )
        total = sum(count * seconds[piece] for piece, count in counts.items())
        sums[workload] = (total, seconds["model", PARENT])
    return sums


def calibration_architectures(library: Mapping[str, Sequence[str]], num_layers: int) -> dict[str, Architecture]:
    """Return four architectures by name, from the parent to a mix of all variants.

    Args:
        library: the variants of ``'attention'``, ``'ffn'`` and ``'head'``, without the parent's.
        num_layers: layers of the parent.
    """

    def cycle(kind: str, count: int) -> list[str]:
        variants = (PARENT, *library.get(kind, ()))
        return [variants[i % len(variants)] for i in range(count)]

    attention, ffn, heads = cycle("attention", num_layers), cycle("ffn", num_layers), cycle(HEAD, 4)
    parent = [PARENT] * num_layers
    choices = {
        "parent": (parent, parent),
        "mixed-attention": (attention, parent),
        "mixed-ffn": (parent, ffn),
        "mixed": (attention, ffn[::-1]),  # reversed, so that the pairs of variants vary over the layers
    }
    return {
        name: Architecture(tuple(map(LayerChoice, *pair)), head)
        for (name, pair), head in zip(choices.items(), heads, strict=True)
    }


def fit_scale(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Return the factor on the predictions that minimizes the sum of squared relative errors."""
    ratios = [p / m for p, m in zip(predicted, measured, strict=True)]
    return sum(ratios) / sum(ratio * ratio for ratio in ratios)


def leave_one_out_errors(predicted: Sequence[float], measured: Sequence[float]) -> list[float]:
    """Return each model's relative prediction error with the scale fitted to the other models."""
    errors = []
    for i in range(len(predicted)):
        others = [j for j in range(len(predicted)) if j != i]
        scale = fit_scale([predicted[j] for j in others], [measured[j] for j in others])
        errors.append(scale * predicted[i] / measured[i] - 1)
    return errors


def calibrate(
    costs: pd.DataFrame,
    architectures: Mapping[str, Architecture],
    measured: Mapping[tuple[str, str, int], Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Fit one scale per scenario, phase and batch, to all models but the stock parent.

    Args:
        costs: rows of `tables.COSTS`.
        architectures: the measured models, by name, without the stock parent.
        measured: the measured seconds by scenario, phase and batch, then by model.

    Returns:
        Rows of `tables.CALIBRATION`.
    """
    parts = {name: sum_of_parts(costs, architecture) for name, architecture in architectures.items()}
    rows = []
    for workload, seconds in measured.items():
        fitted = [name for name in seconds if name != STOCK]
        scale = fit_scale([sum(parts[name][workload]) for name in fitted], [seconds[name] for name in fitted])
        for name, value in seconds.items():
            subblocks, fixed = parts[PARENT if name == STOCK else name][workload]
            rows.append(
                {
                    "model": name,
                    **dict(zip(WORKLOAD, workload, strict=True)),
                    "subblock_seconds": subblocks,
                    "fixed_seconds": fixed,
                    "measured_seconds": value,
                    "scale": scale,
                }
            )
    return rows


def stock_factors(calibration: pd.DataFrame) -> dict[tuple[str, str, int], float]:
    """Return the stock parent's seconds over the packed parent's, by scenario, phase and batch; empty without it.

    Args:
        calibration: rows of `tables.CALIBRATION`.
    """
    measured = calibration.pivot_table("measured_seconds", WORKLOAD, "model")
    if STOCK not in measured:
        return {}
    factors: Any = (measured[STOCK] / measured[PARENT]).dropna().to_dict()  # pandas declares keys as hashable only
    return dict(factors)
