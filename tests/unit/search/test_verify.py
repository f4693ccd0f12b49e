"""The re-check of solutions against tampering."""

from dataclasses import replace

import pytest
from synthetic_library import library, limit

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.config import Search
from tangram.errors import TangramError
from tangram.search.solve import solve
from tangram.search.verify import verify

SEARCH = Search()


def test_recheck_catches_every_tampering():
    problem = library(3, 6).problem({"constraints": [limit("throughput", 1.5)], "solutions": 2, "max_shared": 0.5})
    first, second = solve(problem, SEARCH)
    verify(problem, SEARCH, first)
    verify(problem, SEARCH, second, [first])
    parent = replace(first, architecture=problem.parent, objective=0.0, bound=0.0)
    layers = first.architecture.layers
    unknown = Architecture((LayerChoice("gqa-3", "parent"), *layers[1:]))
    for tampered, earlier, message in [
        (replace(first, objective=first.objective - 1e-6), (), "not the sum of scores"),
        (replace(first, bound=first.bound - 1e-6), (), "does not prove"),
        (replace(first, architecture=Architecture(layers[:-1])), (), "not one option per layer"),
        (replace(first, architecture=unknown), (), "not an option"),
        (replace(first, architecture=Architecture(layers, "parent@fp8")), (), "not an option of the head"),
        (replace(first, batches={"chat": 5}), (), "not in the grid"),
        (parent, (), "exceeded"),
        (first, [first], "shares 6 layers"),
    ]:
        with pytest.raises(TangramError, match=message):
            verify(problem, SEARCH, tampered, earlier)
