"""Solutions as tables and JSON: value, limit and slack of every constraint, predicted costs of solution and parent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tangram.blocks.architecture import Architecture, pieces_of
from tangram.blocks.base import PAIR
from tangram.search.problem import Problem

if TYPE_CHECKING:
    from tangram.search.verify import Solution


def predictions(problem: Problem, architecture: Architecture, batches: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return an architecture's predictions by scenario, with ``speedup``: its throughput over the parent's best.

    The parent is the one that stock transformers runs, or in llama.cpp its F16 file.

    Args:
        problem: costs and limits.
        architecture: any architecture.
        batches: batch sizes by scenario; by default those of largest throughput.
    """
    scenarios = {}
    for name in problem.costs.scenarios:
        batch = batches.get(name) or problem.usual_batch(architecture, name)
        child = problem.costs.predict(architecture, name, batch)
        stock, parent = problem.stock, problem.reference_parent
        reference = stock.costs.predict(parent, name, stock.usual_batch(parent, name))
        scenarios[name] = {**asdict(child), "speedup": child.throughput / reference.throughput}
    return scenarios


def constraint_values(problem: Problem, architecture: Architecture, batches: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return every constraint with limit, value and slack in the quantity's unit; a negative slack is a violation."""
    values = []
    for constraint in problem.target.constraints:
        value, limit = problem.predict(constraint, architecture, batches), problem.limit(constraint, batches)
        slack = value - limit if constraint.quantity == "throughput" else limit - value
        values.append({**constraint.model_dump(mode="json"), "limit": limit, "value": value, "slack": slack})
    return values


def architecture_summary(problem: Problem, architecture: Architecture, batches: Mapping[str, int]) -> dict[str, Any]:
    """Return the entry of any architecture: variants, sum of scores, sizes, constraints, scenarios."""
    scenarios = predictions(problem, architecture, batches)
    first = next(iter(scenarios.values()))
    return {
        "sum_of_scores": problem.objective(architecture),
        "parameters": first["parameters"],
        "kv_bytes_per_token": first["kv_bytes_per_token"],
        "batches": dict(batches),
        "constraints": constraint_values(problem, architecture, batches),
        "scenarios": scenarios,
        **asdict(architecture),
    }


def solver_entries(problem: Problem, solutions: Sequence[Solution]) -> list[dict[str, Any]]:
    """Return every solution's name, proof and summary.

    A constraint's ``shadow_price`` is the decrease of the LP relaxation's objective when its limit is loosened by 1 %.
    """
    entries = []
    for number, solution in enumerate(solutions):
        entry = architecture_summary(problem, solution.architecture, solution.batches)
        for constraint, price in zip(entry["constraints"], solution.shadow_prices, strict=True):
            constraint["shadow_price"] = price
        proof = {"objective": solution.objective, "bound": solution.bound, "gap": solution.gap}
        entries.append({"solution": str(number), **proof, **entry})
    return entries


def beside_parent(problem: Problem, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of a file of solutions: the reference parent's predictions and the solutions' entries."""
    scenarios = predictions(problem.stock, problem.reference_parent, {})
    first = next(iter(scenarios.values()))
    parent = {key: first[key] for key in ("parameters", "kv_bytes_per_token")}
    return {"parent": {**parent, "scenarios": scenarios}, "solutions": list(entries)}


def speeds(entry: Mapping[str, Any]) -> str:
    """Return a solution's predicted speed-ups as text."""
    return ", ".join(f"{name} {numbers['speedup']:.3f} x" for name, numbers in entry["scenarios"].items())


def solution_rows(problem: Problem, solutions: Sequence[Solution]) -> list[dict[str, Any]]:
    """Return rows of `tables.SOLUTIONS`: attention and FFN of every layer, and the head as of layer 0.

    A layer whose pair was scored has one row of kind ``'block'`` and variant ``attention+ffn``.
    """
    rows = []
    for number, solution in enumerate(solutions):
        for group, option in enumerate(problem.chosen(solution.architecture)):
            layer, pieces = problem.layer(group), pieces_of(option.choice)
            if option.parts is None:
                scored = [(PAIR, "+".join(variant for _, variant in pieces), option.score)]
            else:
                scored = [(*piece, score) for piece, score in zip(pieces, option.parts, strict=True)]
            rows += [
                {"solution": str(number), "layer": layer, "kind": kind, "variant": variant, "score": score}
                for kind, variant, score in scored
            ]
    return rows
