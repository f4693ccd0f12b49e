"""Solutions as tables and JSON: values, limits and slacks of every constraint, predicted speeds beside the parent's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tangram.blocks.architecture import Architecture
from tangram.search.problem import Problem

if TYPE_CHECKING:
    from tangram.search.mip import Solution


def predictions(problem: Problem, architecture: Architecture, batches: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return an architecture's predicted numbers by scenario, and ``speedup``: its throughput over the parent's best.

    Args:
        problem: costs and limits.
        architecture: any.
        batches: batch sizes; a scenario that is not in there gets the one of largest throughput.
    """
    found = {}
    for name, scenario in problem.costs.scenarios.items():
        batch = batches.get(name) or problem.best_batch(architecture, name) or min(scenario.batch_sizes)
        parent_batch = problem.best_batch(problem.parent, name) or min(scenario.batch_sizes)
        own = problem.costs.predict(architecture, name, batch)
        parent = problem.costs.predict(problem.parent, name, parent_batch)
        found[name] = {**asdict(own), "speedup": own.throughput / parent.throughput}
    return found


def constraint_values(problem: Problem, architecture: Architecture, batches: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return every constraint with limit, value and slack in the quantity's own unit; slack is negative outside."""
    found = []
    for constraint in problem.target.constraints:
        value, limit = problem.predict(constraint, architecture, batches), problem.limit(constraint, batches)
        slack = value - limit if constraint.quantity == "throughput" else limit - value
        found.append({**constraint.model_dump(mode="json"), "limit": limit, "value": value, "slack": slack})
    return found


def architecture_summary(problem: Problem, architecture: Architecture, batches: Mapping[str, int]) -> dict[str, Any]:
    """Return what can be said of any architecture without a solver: scores, sizes, constraints, scenarios."""
    scenarios = predictions(problem, architecture, batches)
    first = next(iter(scenarios.values()))
    return {
        "sum_of_scores": problem.objective(architecture),
        "parameters": first["parameters"],
        "kv_bytes_per_token": first["kv_bytes_per_token"],
        "batches": dict(batches),
        "constraints": constraint_values(problem, architecture, batches),
        "scenarios": scenarios,
    }


def solutions_summary(problem: Problem, solutions: Sequence[Solution]) -> dict[str, Any]:
    """Return `solutions.json`: the parent's own numbers and every solution's, without times, so equal runs are equal.

    A constraint's ``shadow_price`` is how much the LP relaxation's sum of scores falls when its limit is loosened by
    one per cent.
    """
    entries = []
    for rank, solution in enumerate(solutions):
        entry = architecture_summary(problem, solution.architecture, solution.batches)
        for constraint, price in zip(entry["constraints"], solution.shadow_prices, strict=True):
            constraint["shadow_price"] = price
        proof = {"objective": solution.objective, "bound": solution.bound, "gap": solution.gap}
        entries.append({"rank": rank, **proof, **entry})
    scenarios = predictions(problem, problem.parent, {})
    first = next(iter(scenarios.values()))
    parent = {key: first[key] for key in ("parameters", "kv_bytes_per_token")}
    return {"parent": {**parent, "scenarios": scenarios}, "solutions": entries}


def solution_rows(problem: Problem, solutions: Sequence[Solution]) -> list[dict[str, Any]]:
    """Return rows of `tables.SOLUTIONS`: attention and FFN of every layer, or one ``'block'`` where a pair was scored.

    A block's variant is ``attention+ffn``.
    """
    rows = []
    for rank, solution in enumerate(solutions):
        for layer, choice in enumerate(solution.architecture):
            candidate = problem.candidate(layer, choice)
            if candidate.parts is None:
                pieces = [("block", f"{choice.attention}+{choice.ffn}", candidate.score)]
            else:
                attention, ffn = candidate.parts
                pieces = [("attention", choice.attention, attention), ("ffn", choice.ffn, ffn)]
            rows += [
                {"rank": rank, "layer": layer, "kind": kind, "variant": variant, "score": score}
                for kind, variant, score in pieces
            ]
    return rows
