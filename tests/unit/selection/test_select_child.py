"""The command: the winner's architecture, the scores that decided, and what they cost."""

import json
from dataclasses import asdict

import pytest
import torch
from tiny_children import LAYERS, MIXED, NO_ATTENTION, PARENT_ONLY, VOCABULARY, pieces

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.commands.pin_candidates import pin_candidates
from tangram.commands.select_child import select_child
from tangram.config import Selection, Target, slice_of
from tangram.files import write_tensors
from tangram.search.solutions import load_solutions, save_solutions
from tangram.tables import CORPUS, SELECTION, read_table, write_table

MILD = Architecture((*PARENT_ONLY.layers[:4], LayerChoice("parent", "width-0.5")))


@pytest.fixture
def select(llama, tmp_path):
    llama.save_pretrained(tmp_path / "parent")
    piece = pieces(llama)
    for kind, module, variants in (
        ("attention", "self_attn", ("gqa-1", "linear", "no-op")),
        ("ffn", "mlp", ("width-0.5", "linear", "no-op")),
    ):
        for variant in variants:
            path = tmp_path / "library" / kind / variant / f"0-{LAYERS - 1}.safetensors"
            path.parent.mkdir(parents=True)
            tensors = {
                f"model.layers.{layer}.{module}.{name}": tensor.clone().contiguous()
                for layer in range(LAYERS)
                for name, tensor in piece(kind, variant, layer).items()
            }
            write_tensors(path, tensors, {})
    tokens = torch.randint(2, VOCABULARY, (8, 16), generator=torch.Generator().manual_seed(0))
    rows = [
        {"sequence_id": i, "source": "test", "input_ids": row.tolist(), "documents": ["x"], "document_starts": [0]}
        for i, row in enumerate(tokens)
    ]
    write_table(rows, CORPUS, tmp_path / "score.parquet")
    entries = [
        {"solution": str(number), **asdict(architecture)}
        for number, architecture in enumerate((MIXED, NO_ATTENTION, MILD))
    ]
    save_solutions({"solutions": entries}, tmp_path / "mip.json", {})
    shards, candidates = f"0-{LAYERS - 1}", str(tmp_path / "candidates.json")
    pin_candidates(str(tmp_path / "mip.json"), str(tmp_path / "library"), shards, candidates)

    def select(**options) -> dict:
        section = Selection(prompt_tokens=8, batch_size=4, **options)
        select_child(
            slice_of(section),
            str(tmp_path / "parent"),
            str(tmp_path / "score.parquet"),
            str(tmp_path / "library"),
            shards,
            candidates,
            str(tmp_path / "checkpoints" / "selection.npz"),
            str(tmp_path / "solution.json"),
            str(tmp_path / "scores.parquet"),
            str(tmp_path / "summary.json"),
        )
        return json.loads((tmp_path / "summary.json").read_text())

    return select


def test_the_best_candidate_is_selected_for_a_part_of_the_cost(select, tmp_path):
    summary = select(budget=0.5)
    assert summary["selected"] == 2
    assert load_solutions(tmp_path / "solution.json") == {"0": MILD}
    scores = read_table(tmp_path / "scores.parquet", SELECTION)
    assert len(scores) == summary["evaluated"] <= 0.5 * 3 * 16
    assert summary["tokens"] == scores["tokens"].sum()
    assert scores["candidate"].value_counts()[2] == max(summary["prompts_seen"])
    assert not (tmp_path / "checkpoints" / "selection.npz").exists()


def test_equal_seeds_select_alike_and_a_full_budget_sees_all(select, tmp_path):
    first = select(budget=0.4, policy="double-thompson")
    assert select(budget=0.4, policy="double-thompson") == first
    assert select(budget=1.0, policy="uniform", metric="lm_loss")["share"] == 1


def test_a_judges_votes_select_and_their_tokens_are_counted(select, tmp_path):
    summary = select(budget=0.7, policy="sign-halving", metric="judge", continuation_tokens=4)
    scores = read_table(tmp_path / "scores.parquet", SELECTION)
    assert set(scores["metric"]) == {"judge"}
    assert set(scores["tokens"]) == {8 + 4 + 4}  # the prompt, and the continuation written and read
    assert summary["tokens"] == 16 * summary["evaluated"]
    assert summary["duels"] > 0
    assert select(budget=0.5)["duels"] == 0  # values


def test_values_are_not_asked_of_a_judge():
    with pytest.raises(ValueError, match="'paired-halving' compares values"):
        Selection(metric="judge")
    assert Selection(metric="judge", policy="double-thompson").continuation_tokens == 16


def test_a_selection_from_one_solution_is_refused():
    constraint = {"quantity": "parameters", "max": 0.9}
    with pytest.raises(ValueError, match="'solutions' of at least 2"):
        Target(constraints=[constraint], selection={})
    assert Target(constraints=[constraint], solutions=2, selection={}).selection == Selection()
