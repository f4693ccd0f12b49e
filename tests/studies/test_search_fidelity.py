"""Sums and true scores of many children, and the searches beside each other, on a tiny parent."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_children import CONFIGS, LAYERS, VOCABULARY, child_of, pieces
from tiny_models import random_model

from tangram.activations import StreamedActivations
from tangram.config import Evolution, Search, Target
from tangram.metrics import compare
from tangram.search.solve import solve
from tangram.selection.assembled import AssembledScores
from tangram_studies.search_fidelity import SOURCES, Settings, Text, children_of, measure, tables

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "search"))
from synthetic_library import library, limit

TOKENS = torch.randint(2, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(0))
VARIANTS = {"attention": {"gqa-1": 0.7, "no-op": 0.0}, "ffn": {"width-0.5": 0.6, "no-op": 0.0}}
SETTINGS = Settings(Search(), 6, Evolution(evaluations=8, offspring=4), 0)


@pytest.fixture(scope="module")
def problem():
    return library(3, LAYERS, **VARIANTS).problem(Target.model_validate({"constraints": [limit("throughput", 1.4)]}))


@pytest.fixture(scope="module")
def parent():
    torch.set_num_threads(1)
    return random_model(CONFIGS["llama-biases"])


@pytest.fixture(scope="module")
def result(problem, parent):
    truth = AssembledScores(parent, StreamedActivations(parent, TOKENS, 4), TOKENS, pieces(parent), 4)
    return measure(problem, {"score": Text(truth, range(4)), "heldout": Text(truth, [1, 3])}, SETTINGS)


def test_children_of_all_sources_differ_and_satisfy_the_limit(problem):
    (solution,) = solve(problem, Search())
    sources = children_of(problem, solution.batches, SETTINGS)
    assert tuple(sources) == SOURCES
    children = [child for group in sources.values() for child in group]
    assert len(children) == len(set(children)) > 10
    assert all(problem.feasible(child, solution.batches) for child in children)
    assert sources["diverse"][0] == solution.architecture


def test_true_scores_are_those_of_the_assembled_children(problem, parent, result):
    (solution,) = solve(problem, Search())
    first = result["children"][0]
    assert first["sum"] == pytest.approx(solution.objective)
    with torch.no_grad():
        logits, teacher = (
            m(TOKENS).logits[:, :-1].flatten(0, 1) for m in (child_of(parent, solution.architecture), parent)
        )
    expected = compare(logits, teacher, TOKENS[:, 1:].flatten())["kl"].unflatten(0, (4, -1)).mean(1).numpy()
    assert first["true"]["score"] == pytest.approx(expected, rel=1e-3)
    assert first["true"]["heldout"] == pytest.approx(expected[[1, 3]], rel=1e-3)


def test_every_search_stands_beside_the_solver(result):
    found = {entry["search"]: entry for entry in result["searches"]}
    best = found["mip"]["sum"]
    assert {"mip", "greedy", "random", "dynamic-program", "evolutionary from mip"} <= found.keys()
    assert all(entry["sum"] >= best - 1e-9 and entry["used"] <= 1 + 1e-8 for entry in found.values())
    evolved = np.mean(found["evolutionary from mip"]["true"]["score"])
    assert evolved <= np.mean(found["mip"]["true"]["score"]) + 1e-6
    text = tables("1.4 x", result)
    assert "| heldout | all |" in text
    assert text.count("| mip |") == 1
