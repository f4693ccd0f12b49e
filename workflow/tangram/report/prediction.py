"""Predicted throughput and size of solutions, from the cost model."""

from __future__ import annotations

from typing import Any

from tangram.report.data import SPEEDUP, Results
from tangram.report.names import solution_name
from tangram.report.style import number, percent

ROUNDING = 1e-9  # relative gaps below it are rounding errors
UNITS = {
    "throughput": (1.0, "tokens/s"),
    "latency": (1.0, "s"),
    "time_to_first_token": (1.0, "s"),
    "memory": (1e-6, "MB"),
    "parameters": (1e-6, "M"),
    "kv_bytes_per_token": (1.0, "B"),
}


def summary_of(results: Results, target: str, solution: str) -> dict[str, Any]:
    """Return one solution's entry, as `search.summary.architecture_summary` wrote it; empty if none exists."""
    return results.solutions.get((target, solution), {})


def predicted(results: Results, target: str, solution: str, quantity: str) -> float | None:
    """Return a predicted quantity in the default scenario, such as ``'speedup'`` or ``'throughput'`` (tokens/s)."""
    value = summary_of(results, target, solution).get("scenarios", {}).get(results.settings.default_scenario, {})
    return float(value[quantity]) if quantity in value else None


def predicted_packed_parent(results: Results, target: str) -> float | None:
    """Return the packed parent's predicted speed-up over the stock parent, in the default scenario.

    It follows from the calibration's measurements of both parents; None without a measurement of the stock parent, or
    for a target in another engine than torch.
    """
    from tangram.costs.calibration import stock_factors

    scenario = results.settings.default_scenario
    stock = results.stock.get(target, {}).get("scenarios", {}).get(scenario)
    factors = stock_factors(results.calibration)
    if target in results.settings.engines or not stock or (scenario, "decode", stock["batch"]) not in factors:
        return None
    prefill, decode = stock["time_to_first_token"], stock["latency"] - stock["time_to_first_token"]
    packed = [s / factors[scenario, p, stock["batch"]] for s, p in ((prefill, "prefill"), (decode, "decode"))]
    return float(stock["latency"] / sum(packed))


def predicted_speedup(results: Results, target: str, solution: str, metric: str = SPEEDUP) -> float | None:
    """Return a solution's predicted speed-up over the stock parent, or the packed one (``PACKED_SPEEDUP``), in torch.

    None for a target in another engine, whose predictions are of that engine.
    """
    if target in results.settings.engines:
        return None
    speedup = predicted(results, target, solution, "speedup")
    if metric == SPEEDUP or speedup is None:
        return speedup
    packed = predicted_packed_parent(results, target)
    return speedup / packed if packed else None


def constraint_facts(results: Results) -> list[list[str]]:
    """Return one row per solution and constraint: names, limit, value, slack, price, sum of scores, bound, gap.

    Slack is relative to the limit. The price is the decrease of the sum of scores when the limit is loosened by 1 %.
    """
    rows = []
    for target, solution in results.children:
        entry = summary_of(results, target, solution)
        if not solution.isdigit() or not entry:
            continue
        for constraint in entry.get("constraints", []):
            factor, unit = UNITS.get(constraint["quantity"], (1.0, ""))
            is_minimum = constraint.get("min") is not None
            scenario = f" ({constraint['scenario']})" if constraint.get("scenario") else ""
            rows.append(
                [
                    solution_name(results, target, solution),
                    f"{constraint['quantity'].replace('_', ' ')}{scenario}",
                    f"{'≥' if is_minimum else '≤'} {number(constraint['limit'] * factor, 4)} {unit}",
                    f"{number(constraint['value'] * factor, 4)} {unit}",
                    percent(constraint["slack"] / constraint["limit"], places=2),
                    number(constraint.get("shadow_price")),
                    number(entry.get("objective"), 4),
                    number(entry.get("bound"), 4),
                    f"{entry['gap']:.0e}" if entry.get("gap", 0) > ROUNDING else "0",
                ]
            )
    return rows
