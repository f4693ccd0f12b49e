"""The options of a round: pieces that may replace a child's subblocks, with their scores in this child."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tangram.blocks.architecture import Architecture, pieces_of
from tangram.blocks.base import PARENT
from tangram.search.problem import Option, Problem

Piece = tuple[int, str, str]  # layer, kind and variant


def replaceable(problem: Problem, architecture: Architecture) -> list[Piece]:
    """Return the pieces that may replace a child's subblocks, in the order of layers.

    A subblock that is still the parent's takes any piece of the library. Another one takes those that are cheaper in
    some limit at some batch size. Hence, if an architecture satisfies the limits, so does one that a child can become:
    it keeps each subblock whose replacement would be cheaper in no limit.

    Args:
        problem: the target's problem, with the options of the whole library.
        architecture: the child's.
    """
    current = {(layer, kind): variant for layer, kind, variant in architecture.pieces()}
    pieces = dict.fromkeys(
        (problem.layer(group), kind, variant)
        for group, options in enumerate(problem.options)
        for option in options
        for kind, variant in pieces_of(option.choice)
    )
    return [
        (layer, kind, variant)
        for layer, kind, variant in pieces
        if variant not in (PARENT, current[layer, kind])
        and (current[layer, kind] == PARENT or _cheaper(problem, layer, kind, variant, current[layer, kind]))
    ]


def _cheaper(problem: Problem, layer: int, kind: str, variant: str, than: str) -> bool:
    """Return whether a variant uses less than another of some limit at some batch size."""
    for constraint in problem.target.constraints:
        scenario = constraint.scenario or next(iter(problem.costs.scenarios))
        for batch in problem.costs.scenarios[scenario].batch_sizes:
            place = (constraint.quantity, scenario, batch, layer, kind)
            if problem.costs.usage(*place, variant) < problem.costs.usage(*place, than):
                return True
    return False


def in_child(problem: Problem, architecture: Architecture, scores: Mapping[Piece, float]) -> Problem:
    """Return the problem of a round: a child's subblocks, which score 0, and the pieces that may replace them.

    Args:
        problem: the target's problem, with the options of the whole library.
        architecture: the child's.
        scores: the scores of `replaceable` pieces: the child's loss of quality with the piece, less that without it.
    """
    values = {**dict.fromkeys(architecture.pieces(), 0.0), **scores}
    groups = []
    for group, options in enumerate(problem.options):
        layer, chosen = problem.layer(group), list[Option]()
        for option in options:
            pieces = [(layer, kind, variant) for kind, variant in pieces_of(option.choice)]
            if all(piece in values for piece in pieces):
                parts = tuple(values[piece] for piece in pieces)
                chosen.append(Option(option.choice, sum(parts), parts))
        groups.append(tuple(chosen))
    return replace(problem, options=tuple(groups))
