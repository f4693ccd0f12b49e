"""The command: the winner's architecture, the scores that decided, and what they cost."""

import json
from dataclasses import asdict

import pytest
import torch
from tiny_children import LAYERS, MIXED, NO_ATTENTION, PARENT_ONLY, VOCABULARY, child_of, pieces

from tangram.activations import StreamedActivations
from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.commands.pin_candidates import pin_candidates
from tangram.commands.select_child import select_child
from tangram.config import Budget, Finetune, Selection, Target, slice_of
from tangram.corpus.tokens import read_tokens
from tangram.evaluation.text import compare_on_text
from tangram.files import write_tensors
from tangram.finetune import finetune
from tangram.models.loading import load_model
from tangram.search.solutions import load_solutions, save_solutions
from tangram.selection.finetuned import FinetunedCandidates
from tangram.tables import CORPUS, SELECTION, read_table, write_table

FINETUNE = Finetune(batch_size=2, micro_batch_size=2, learning_rate=0.003)
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
    write_table(rows[::-1], CORPUS, tmp_path / "finetune.parquet")
    entries = [
        {"solution": str(number), **asdict(architecture)}
        for number, architecture in enumerate((MIXED, NO_ATTENTION, MILD))
    ]
    save_solutions({"solutions": entries}, tmp_path / "mip.json", {})
    shards, candidates = f"0-{LAYERS - 1}", str(tmp_path / "candidates.json")
    pin_candidates(str(tmp_path / "mip.json"), str(tmp_path / "library"), shards, candidates)

    def select(**options) -> dict:
        section = Selection(prompt_tokens=8, batch_size=4, **options)
        trained = {"finetune": slice_of(FINETUNE), "finetune_corpus": str(tmp_path / "finetune.parquet")}
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
            **(trained if section.metric == "finetuned" else {}),
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


def test_finetuned_candidates_are_those_of_a_plain_training(select, tmp_path, llama):
    summary = select(metric="finetuned", tokens=2 * 3 * 2 * 16 + 31)  # 3 steps of 2 sequences of each of 2 candidates
    exact = summary["mean"]
    better = sorted(range(3), key=exact.__getitem__)[:2]
    (round_,) = summary["finetuned"]
    assert round_["tokens"] == 3 * 2 * 16
    assert sorted(round_["kl"]) == sorted(map(str, better))
    tokens = read_tokens(tmp_path / "score.parquet")
    model, text = load_model(tmp_path / "parent"), read_tokens(tmp_path / "finetune.parquet")
    for candidate in better:
        child = child_of(model, (MIXED, NO_ATTENTION, MILD)[candidate])
        settings = FINETUNE.model_copy(update={"budget": Budget(tokens=3 * 2 * 16)})
        states = StreamedActivations(model, text, 2)
        finetune(child, model, states, text, settings, 0)
        final = StreamedActivations(model, tokens, 2).hidden(LAYERS)
        kl = compare_on_text(child, model, final[:4], tokens[:4], 2, "test")["kl"].mean().item()
        assert round_["kl"][str(candidate)] == pytest.approx(kl, rel=1e-5)
    winner = min(better, key=lambda candidate: round_["kl"][str(candidate)])
    assert load_solutions(tmp_path / "solution.json") == {"0": (MIXED, NO_ATTENTION, MILD)[winner]}
    scores = read_table(tmp_path / "scores.parquet", SELECTION).groupby("metric")
    assert sorted(set(scores.get_group("finetuned")["prompt"])) == [0, 1, 2, 3]
    assert min(scores.get_group("kl")["prompt"]) >= 8  # prompts of the other sequences
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())


def test_a_selection_by_finetuning_goes_on_after_a_kill(select, tmp_path, monkeypatch):
    first = select(metric="finetuned", tokens=1000)
    written = (tmp_path / "scores.parquet").read_bytes()
    trainings, original = [], FinetunedCandidates._save

    def save(self, number, candidate, child):
        original(self, number, candidate, child)
        trainings.append(candidate)
        if len(trainings) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(FinetunedCandidates, "_save", save)
    with pytest.raises(KeyboardInterrupt):
        select(metric="finetuned", tokens=1000)
    passes = {"layers_shared": first["layers_shared"]}  # counts those of one job
    assert {**select(metric="finetuned", tokens=1000), **passes} == first
    assert (tmp_path / "scores.parquet").read_bytes() == written
    assert len(trainings) == 2  # the first one is not repeated


def test_a_selection_by_finetuning_needs_its_tokens():
    with pytest.raises(ValueError, match="needs 'tokens'"):
        Selection(metric="finetuned")
    with pytest.raises(ValueError, match="leave tokens out"):
        Selection(tokens=100)
    with pytest.raises(ValueError, match="leave policy out"):
        Selection(metric="finetuned", tokens=100, policy="uniform")
