"""From measured pieces to whole models: the sum of a child's parts, and how far it is from the child itself."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.blocks.base import PARENT
from tangram.errors import TangramError

if TYPE_CHECKING:
    import pandas as pd

WORKLOAD = ["scenario", "phase", "batch"]


def steady_seconds(costs: pd.DataFrame) -> pd.Series:
    """Return each row's seconds as if all jobs had run at the same time.

    Every job timed the parent's own subblock in turns with its variant: their ratio holds whatever the machine did
    between jobs. It is scaled back to seconds by the median of that parent's time over all jobs.

    Args:
        costs: rows of `tables.COSTS`.
    """
    parent = costs.groupby(["layer_class", "kind", *WORKLOAD])["parent_seconds"].transform("median")
    return costs["seconds"] / costs["parent_seconds"] * parent


def sum_of_parts(costs: pd.DataFrame, architecture: Architecture) -> dict[tuple[str, str, int], tuple[float, float]]:
    """Return a model's seconds by the cost table: all subblocks, and what is fixed; by scenario, phase and batch.

    Raises:
        TangramError: the table lacks a variant.
    """
    steady = costs.assign(seconds=steady_seconds(costs))
    chosen = Counter(itertools.chain.from_iterable((("attention", c.attention), ("ffn", c.ffn)) for c in architecture))
    sums = {}
    workload: Any  # a tuple, which pandas declares as hashable only
    for workload, rows in steady.groupby(WORKLOAD):
        seconds = rows.set_index(["kind", "variant"])["seconds"].to_dict()
        missing = [
            f"{kind} {variant}" for kind, variant in [*chosen, ("model", PARENT)] if (kind, variant) not in seconds
        ]
        if missing:
            raise TangramError(
                f"the cost table lacks {', '.join(missing)} for {workload[0]}, {workload[1]}, batch {workload[2]}; "
                "measure them (rule measure_costs) and collect the table again"
            )
        total = sum(count * seconds[piece] for piece, count in chosen.items())
        sums[workload] = (total, seconds["model", PARENT])
    return sums


def calibration_architectures(library: Mapping[str, Sequence[str]], num_layers: int) -> dict[str, Architecture]:
    """Return four whole models, from the parent to a mix of everything, by name.

    Args:
        library: the variants of ``'attention'`` and ``'ffn'``, without the parent's own.
        num_layers: layers of the parent.
    """
    attention = [(PARENT, *library["attention"])[i % (1 + len(library["attention"]))] for i in range(num_layers)]
    ffn = [(PARENT, *library["ffn"])[i % (1 + len(library["ffn"]))] for i in range(num_layers)]
    parent = [PARENT] * num_layers
    choices = {
        "parent": (parent, parent),
        "mixed-attention": (attention, parent),
        "mixed-ffn": (parent, ffn),
        "mixed": (attention, ffn[::-1]),  # reversed, so that the two kinds' cycles do not always meet alike
    }
    return {name: tuple(map(LayerChoice, *pair)) for name, pair in choices.items()}


def fit_scale(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Return the factor on the predictions with the least sum of squared relative errors."""
    ratios = [p / m for p, m in zip(predicted, measured, strict=True)]
    return sum(ratios) / sum(ratio * ratio for ratio in ratios)


def leave_one_out_errors(predicted: Sequence[float], measured: Sequence[float]) -> list[float]:
    """Return each model's relative error of prediction under the scale that the other models give."""
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
    """Fit one scale per scenario, phase and batch.

    Args:
        costs: rows of `tables.COSTS`.
        architectures: the measured models, by name.
        measured: their seconds, by scenario, phase and batch, then by name.

    Returns:
        Rows of `tables.CALIBRATION`.
    """
    parts = {name: sum_of_parts(costs, architecture) for name, architecture in architectures.items()}
    rows = []
    for workload, seconds in measured.items():
        scale = fit_scale([sum(parts[name][workload]) for name in seconds], list(seconds.values()))
        for name, value in seconds.items():
            subblocks, fixed = parts[name][workload]
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
