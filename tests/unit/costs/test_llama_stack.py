"""Predicted sizes in llama.cpp against those of files that are really written."""

import pandas as pd
import pytest
from export_children import ARCHITECTURES as EXPORTED
from export_children import child_on_disk
from gguf import GGUFReader
from tiny_children import FEWER_HEADS, LAYERS
from tiny_models import write_parent

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.config import Costs, Scenario, Target
from tangram.costs.llama_engine import cost_of
from tangram.export.gguf import write_gguf
from tangram.export.parts import read_checkpoint
from tangram.models.families import shape_of
from tangram.search.cost_model import CostModel
from tangram.search.problem import Option, Problem

SCENARIO = {"chat": Scenario(prefill=8, generate=4, batch_sizes=(1,))}
VARIANTS = {
    "attention": (
        "parent",
        "parent@f16",
        "parent@q8_0",
        "parent@q4_0",
        "gqa-1",
        "gqa-1@q8_0",
        "heads-2",
        "heads-1",
        "linear",
        "linear-unbiased",
        "no-op",
    ),
    "ffn": (
        "parent",
        "width-0.5",
        "parent@f16",
        "parent@q8_0",
        "parent@q4_0",
        "width-0.5@q4_0",
        "linear",
        "linear-unbiased",
        "no-op",
    ),
    "head": ("parent", "parent@f16", "parent@q8_0"),
    "model": ("parent",),
}
ARCHITECTURES = {
    "parent": Architecture((LayerChoice(),) * LAYERS),
    "types": Architecture((LayerChoice("gqa-1@q8_0", "width-0.5@q4_0"),) * LAYERS, "parent@q8_0"),
    "no-ops": Architecture(
        (
            LayerChoice("parent", "no-op"),  # its stub is replaced by the FFN two layers further on
            LayerChoice("no-op", "no-op"),
            LayerChoice("no-op", "parent"),
            LayerChoice("parent", "no-op"),  # a stub
            LayerChoice("no-op", "no-op"),
        )
    ),
    "maps": Architecture(
        (
            LayerChoice(),
            LayerChoice("linear", "linear"),
            LayerChoice("parent", "linear"),
            LayerChoice("no-op", "linear"),
            LayerChoice("linear", "no-op"),
        )
    ),
    "fewer heads": FEWER_HEADS,
    "maps without bias": EXPORTED["linear unbiased"],
}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def parent(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent")
    write_parent(folder, num_hidden_layers=LAYERS, tie_word_embeddings=request.param)
    return folder


def problem_of(parent, **constraint) -> Problem:
    """Return a problem with the sizes of all variants, and a second for each."""
    rows = []
    for kind, variants in VARIANTS.items():
        for variant in variants:
            sizes = cost_of(kind, variant, Costs(), shape_of(parent)).sizes._asdict()
            for phase in ("prefill", "decode"):
                row = {"layer_class": 0, "kind": kind, "variant": variant, "engine": "llama.cpp", "scenario": "chat"}
                rows.append({**row, "phase": phase, "batch": 1, "seconds": 1.0, "parent_seconds": 1.0, **sizes})
    workload = {"model": "parent", "scenario": "chat", "batch": 1, "measured_seconds": 1.0, "scale": 1.0}
    calibration = pd.DataFrame([{**workload, "phase": phase} for phase in ("prefill", "decode")])
    groups = tuple((Option(choice, 0.0, None),) for choice in ARCHITECTURES["parent"].choices)
    target = Target.model_validate({"engine": "llama.cpp", "constraints": [constraint]})
    return Problem(groups, CostModel(pd.DataFrame(rows), calibration, SCENARIO), target)


def sizes_of_file(path) -> tuple[int, int]:
    """Return the number of weights in a file, and their bytes."""
    tensors = GGUFReader(path).tensors
    return sum(int(t.n_elements) for t in tensors), sum(int(t.n_bytes) for t in tensors)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_childs_predicted_sizes_are_those_of_its_file(parent, tmp_path, name):
    folder = child_on_disk(parent, tmp_path / "child", ARCHITECTURES[name])
    write_gguf(read_checkpoint(folder), tmp_path / "model.gguf")
    problem = problem_of(parent, quantity="parameters", max=0.9)
    predicted = problem.costs.predict(ARCHITECTURES[name], "chat", 1)
    weights = predicted.memory - 12 * predicted.kv_bytes_per_token
    assert (predicted.parameters, weights) == sizes_of_file(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("reference", "floats"), [("stock", "f16"), ("uniform-q8_0", "q8_0"), ("uniform-q4_0", "q4_0")]
)
def test_relative_limits_refer_to_the_parents_files(parent, tmp_path, reference, floats):
    write_gguf(read_checkpoint(parent), tmp_path / "model.gguf", floats=floats)
    parameters, weights = sizes_of_file(tmp_path / "model.gguf")
    shape = shape_of(parent)
    cache = 12 * LAYERS * shape.kv_heads * shape.head_dim * 2 * 2  # keys and values of 12 tokens in F16
    problem = problem_of(parent, quantity="memory", max=0.5, scenario="chat", reference=reference)
    assert problem.limit(problem.target.constraints[0], {"chat": 1}) == (weights + cache) / 2
    problem = problem_of(parent, quantity="parameters", max=0.5, reference=reference)
    assert problem.limit(problem.target.constraints[0], {"chat": 1}) == parameters / 2
