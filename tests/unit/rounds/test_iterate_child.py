"""The command: rounds against their parts one by one, equal tokens in total, and a job that goes on after a kill."""

import json

import pytest
import torch
from synthetic_library import library, limit
from tiny_children import LAYERS, child_of, pieces
from tiny_models import write_parent

from tangram.activations import StreamedActivations
from tangram.blocks.architecture import from_json, save_architecture
from tangram.child.reassemble import load_child
from tangram.commands.assemble_child import assemble_child
from tangram.commands.finetune_child import finetune_child
from tangram.commands.iterate_child import iterate_child
from tangram.config import Budget, Finetune, Scores, Search, Target, slice_of
from tangram.corpus.tokens import read_tokens
from tangram.files import write_tensors
from tangram.finetune import finetune
from tangram.models.loading import load_model
from tangram.rounds.iterate import Rounds
from tangram.rounds.waypoints import waypoint
from tangram.search.solutions import load_solutions
from tangram.tables import CALIBRATION, CORPUS, COSTS, CURVES, SCORES, read_table, write_table

VARIANTS = {"attention": {"gqa-1": 0.7, "no-op": 0.0}, "ffn": {"width-0.5": 0.6, "no-op": 0.0}}
MODULES = {"attention": "self_attn", "ffn": "mlp"}
SHARDS = f"0-{LAYERS - 1}"
FINETUNE = Finetune(batch_size=2, micro_batch_size=2, learning_rate=3e-4, budget=Budget(epochs=3))


@pytest.fixture
def run(tmp_path):
    """A tiny parent, its pieces, two texts and tables; returns the command with everything but the settings."""
    torch.set_num_threads(1)
    write_parent(tmp_path / "parent", num_hidden_layers=LAYERS, intermediate_size=48)
    model = load_model(tmp_path / "parent")
    tables, piece = library(3, LAYERS, **VARIANTS), pieces(model)
    for name, schema in (("scores", SCORES), ("costs", COSTS), ("calibration", CALIBRATION)):
        write_table(getattr(tables, name), schema, tmp_path / f"{name}.parquet")
    for kind, variants in VARIANTS.items():
        for variant in variants:
            tensors = {
                f"model.layers.{layer}.{MODULES[kind]}.{name}": tensor.detach().clone().contiguous()
                for layer in range(LAYERS)
                for name, tensor in piece(kind, variant, layer).items()
            }
            (tmp_path / "library" / kind / variant).mkdir(parents=True)
            write_tensors(tmp_path / "library" / kind / variant / f"{SHARDS}.safetensors", tensors, {})
    for seed, name in enumerate(("score", "finetune")):
        tokens = torch.randint(3, 300, (4, 12), generator=torch.Generator().manual_seed(seed))
        rows = [
            {"sequence_id": i, "source": "test", "input_ids": row.tolist(), "documents": ["x"], "document_starts": [0]}
            for i, row in enumerate(tokens)
        ]
        write_table(rows, CORPUS, tmp_path / f"{name}.parquet")

    def command(rounds: int) -> None:
        target = Target.model_validate({"constraints": [limit("throughput", 1.6)], "rounds": rounds})
        settings = {"target": target, "search": Search(), "scenarios": tables.scenarios}
        iterate_child(
            settings=slice_of(settings),
            text=slice_of(Scores(position_stride=2, batch_size=4)),
            finetune=slice_of(FINETUNE),
            **{name: str(tmp_path / f"{name}.parquet") for name in ("scores", "costs", "calibration")},
            parent=str(tmp_path / "parent"),
            corpus=str(tmp_path / "score.parquet"),
            finetune_corpus=str(tmp_path / "finetune.parquet"),
            library=str(tmp_path / "library"),
            shards=SHARDS,
            checkpoints=str(tmp_path / "checkpoints"),
            solutions=str(tmp_path / "solution.json"),
            folder=str(tmp_path / "rounds" / "child"),
            curves=str(tmp_path / "curves.parquet"),
        )

    return command


def test_the_first_round_is_a_shorter_way_and_training(run, tmp_path):
    run(rounds=2)
    (entry,) = json.loads((tmp_path / "solution.json").read_text())["rounds"]
    target = {"constraints": [limit("throughput", 1.6)]}
    problem = library(3, LAYERS, **VARIANTS).problem(target)
    _, first = waypoint(problem, Search(), 2)
    assert from_json(entry) == first.architecture
    parent, text = load_model(tmp_path / "parent"), read_tokens(tmp_path / "finetune.parquet")
    child, states = child_of(parent, first.architecture), StreamedActivations(parent, text, 2)
    rows = finetune(child, parent, states, text, FINETUNE, 0, steps=range(3))
    assert entry["finetune_tokens"] == rows[-1]["tokens"] == 72
    trained = load_child(tmp_path / "rounds" / "child")
    assert trained.architecture == first.architecture
    assert entry["kept"] == "trained"
    for name, tensor in child.state_dict().items():
        torch.testing.assert_close(trained.state[name], tensor, msg=name)
    load_model(tmp_path / "rounds" / "child")
    assert set(read_table(tmp_path / "curves.parquet", CURVES)["series"]) == {"round 1"}
    last = load_solutions(tmp_path / "solution.json")["0"]
    assert problem.feasible(last, {"chat": 4})
    kept = set(first.architecture.pieces()) & set(last.pieces())
    assert any(variant != "parent" for _, _, variant in kept)


def test_all_rounds_together_have_the_budgets_tokens(run, tmp_path):
    run(rounds=3)
    entries = json.loads((tmp_path / "solution.json").read_text())["rounds"]
    assert [entry["round"] for entry in entries] == [1, 2]
    last = load_solutions(tmp_path / "solution.json")["0"]
    save_architecture(last, {}, tmp_path / "architecture.json")
    base = tmp_path / "rounds" / "child"
    folder = tmp_path / "0" / "child"
    arguments = (str(tmp_path / "parent"), str(tmp_path / "architecture.json"), str(tmp_path / "library"), SHARDS)
    assemble_child(*arguments, str(folder), base=str(base / "model.safetensors"))
    assert load_child(folder).architecture == last
    sources = json.loads((folder / "provenance.json").read_text())["sources"]
    assert sources["base"] == json.loads((base / "provenance.json").read_text())["model_safetensors_sha256"]
    finetune_child(
        slice_of(FINETUNE),
        str(tmp_path / "parent"),
        str(folder),
        str(tmp_path / "finetune.parquet"),
        str(tmp_path / "checkpoints"),
        str(tmp_path / "0" / "finetuned"),
        str(tmp_path / "0" / "curves.parquet"),
        part="3/3",
    )
    record = json.loads((tmp_path / "0" / "finetuned" / "provenance.json").read_text())
    assert sum(e["finetune_tokens"] for e in entries) + record["finetune_tokens"] == 3 * 4 * 12


def test_killed_rounds_go_on_and_repeat_nothing(run, tmp_path, monkeypatch):
    run(rounds=3)
    written = (tmp_path / "solution.json").read_bytes()
    weights = (tmp_path / "rounds" / "child" / "model.safetensors").read_bytes()
    trainings, original = [], Rounds._train

    def train(self, progress, *arguments):
        trainings.append(len(progress.rounds))
        if len(trainings) == 2:
            raise KeyboardInterrupt
        original(self, progress, *arguments)

    monkeypatch.setattr(Rounds, "_train", train)
    with pytest.raises(KeyboardInterrupt):
        run(rounds=3)
    run(rounds=3)
    assert trainings == [0, 1, 1]
    assert (tmp_path / "solution.json").read_bytes() == written
    assert (tmp_path / "rounds" / "child" / "model.safetensors").read_bytes() == weights
    assert not (tmp_path / "checkpoints").exists()
