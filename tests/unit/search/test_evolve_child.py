"""The commands that search with a model: the evolutionary search, and layers dropped by block influence."""

import json

import pytest
import torch
from synthetic_library import library, limit
from tiny_children import CONFIGS, LAYERS, VOCABULARY, pieces
from tiny_models import random_model

from tangram.activations import StreamedActivations
from tangram.commands.drop_by_influence import drop_by_influence
from tangram.commands.evolve_child import evolve_child
from tangram.config import Evolution, Scores, Search, Target, slice_of
from tangram.files import write_tensors
from tangram.models.loading import load_model
from tangram.scores.influence import block_influence
from tangram.search.drop_layers import drop_whole_layers
from tangram.search.solutions import load_solutions
from tangram.search.solve import solve
from tangram.selection.assembled import AssembledScores
from tangram.tables import CALIBRATION, CORPUS, COSTS, SCORES, write_table

TARGET = Target.model_validate({"constraints": [limit("throughput", 1.4)]})
VARIANTS = {"attention": {"gqa-1": 0.7, "no-op": 0.0}, "ffn": {"width-0.5": 0.6, "no-op": 0.0}}
MODULES = {"attention": "self_attn", "ffn": "mlp"}
TOKENS = torch.randint(2, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def run(tmp_path) -> dict[str, str]:
    """A tiny parent, its pieces, a text, and tables that say nothing of the pieces' true scores."""
    torch.set_num_threads(1)
    model = random_model(CONFIGS["llama-biases"])
    model.save_pretrained(tmp_path / "parent")
    tables, piece = library(3, LAYERS, **VARIANTS), pieces(model)
    for name, schema in (("scores", SCORES), ("costs", COSTS), ("calibration", CALIBRATION)):
        write_table(getattr(tables, name), schema, tmp_path / f"{name}.parquet")
    for kind, variants in VARIANTS.items():
        for variant in variants:
            tensors = {
                f"model.layers.{layer}.{MODULES[kind]}.{name}": tensor.clone().contiguous()
                for layer in range(LAYERS)
                for name, tensor in piece(kind, variant, layer).items()
            }
            (tmp_path / "library" / kind / variant).mkdir(parents=True)
            write_tensors(tmp_path / "library" / kind / variant / f"0-{LAYERS - 1}.safetensors", tensors, {})
    rows = [
        {"sequence_id": i, "source": "test", "input_ids": row.tolist(), "documents": ["x"], "document_starts": [0]}
        for i, row in enumerate(TOKENS)
    ]
    write_table(rows, CORPUS, tmp_path / "corpus.parquet")
    paths = {name: str(tmp_path / f"{name}.parquet") for name in ("scores", "costs", "calibration", "corpus")}
    return {**paths, "parent": str(tmp_path / "parent"), "solutions": str(tmp_path / "found.json")}


def settings(start: str = "mip") -> str:
    evolution = Evolution(start=start, evaluations=30, offspring=6, shares=(0.5, 1.0))
    scenarios = library(3, LAYERS).scenarios
    return slice_of({"target": TARGET, "search": Search(evolution=evolution), "scenarios": scenarios})


@pytest.mark.parametrize("start", ["mip", "random"])
def test_the_evolved_child_is_truly_better_than_the_first(run, tmp_path, start):
    folder, shards = tmp_path / "library", f"0-{LAYERS - 1}"
    arguments = {**run, "settings": settings(start), "text": slice_of(Scores(position_stride=2))}
    evolve_child(**arguments, library=str(folder), shards=shards)
    (entry,) = json.loads((tmp_path / "found.json").read_text())["solutions"]
    evolved = load_solutions(tmp_path / "found.json")["evolutionary"]
    problem = library(3, LAYERS, **VARIANTS).problem(TARGET)
    assert problem.feasible(evolved, entry["batches"])
    model = load_model(run["parent"], "float32", "cpu")
    truth = AssembledScores(model, StreamedActivations(model, TOKENS, 4), TOKENS, pieces(model), 4, 2)
    first = solve(problem, Search())[0].architecture
    values = truth.look([evolved, first]).mean(1)
    assert entry["curve"][-1][1] == pytest.approx(values[0], rel=1e-3)
    assert values[0] <= entry["curve"][0][1] * (1 + 1e-6)
    if start == "mip":
        assert entry["curve"][0][1] == pytest.approx(values[1], rel=1e-3)
    written = (tmp_path / "found.json").read_bytes()
    evolve_child(**arguments, library=str(folder), shards=shards)
    assert (tmp_path / "found.json").read_bytes() == written


def test_layers_are_dropped_by_their_influence(run, tmp_path):
    drop_by_influence(**run, settings=settings(), batch_size=4)
    (entry,) = json.loads((tmp_path / "found.json").read_text())["solutions"]
    model = load_model(run["parent"], "float32", "cpu")
    influence = block_influence(StreamedActivations(model, TOKENS, 4), LAYERS)
    assert entry["influence"] == pytest.approx(influence)
    architecture, _, dropped = drop_whole_layers(library(3, LAYERS, **VARIANTS).problem(TARGET), influence)
    assert load_solutions(tmp_path / "found.json") == {"block-influence": architecture}
    least = sorted(range(LAYERS), key=influence.__getitem__)[: len(dropped)]
    assert entry["layers_dropped"] == list(dropped) == sorted(least)
