"""Scores of many children through the tree of their layers: equal to every child's own, kept, and shared."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_children import LAYERS, MIXED, NO_ATTENTION, PARENT_ONLY, VOCABULARY, child_of, pieces

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.config import HALVING
from tangram.errors import TangramError
from tangram.extensions import registered
from tangram.metrics import compare
from tangram.selection.candidates import CandidateScores, cut_prompts, layer_importance, shared_layers
from tangram.selection.choose import choose

LATE = Architecture((*PARENT_ONLY.layers[:3], LayerChoice("no-op", "width-0.5"), LayerChoice("gqa-1", "no-op")))
CHILDREN = [MIXED, NO_ATTENTION, LATE, PARENT_ONLY]
PROMPTS = torch.randint(2, VOCABULARY, (10, 12), generator=torch.Generator().manual_seed(3))


def table(parent, **options) -> CandidateScores:
    settings = {"metric": "kl", "batch_size": 4} | options
    return CandidateScores(parent, PROMPTS, CHILDREN, pieces(parent), **settings)


@pytest.mark.parametrize("metric", ["kl", "lm_loss"])
@torch.no_grad()
def test_scores_are_those_of_the_assembled_children(parent, metric):
    found = table(parent, metric=metric).look(np.arange(4), np.arange(10))
    teacher = parent(PROMPTS).logits[:, :-1]
    for child, row in zip(CHILDREN, found, strict=True):
        logits = child_of(parent, child)(PROMPTS).logits[:, :-1]
        expected = compare(logits.flatten(0, 1), teacher.flatten(0, 1), PROMPTS[:, 1:].flatten())
        values = expected["kl" if metric == "kl" else "loss"].unflatten(0, (10, -1)).mean(1)
        assert row == pytest.approx(values.numpy(), rel=1e-4, abs=1e-5)


@torch.no_grad()
def test_candidates_that_differ_in_heads_share_their_layers(llama):
    model = llama.bfloat16()
    heads = [LATE, replace(LATE, head="parent@bf16")]
    scores = CandidateScores(model, PROMPTS, heads, pieces(model), "kl", 10)
    found = scores.look(np.arange(2), np.arange(10))
    assert scores.layers_run == LAYERS + (LAYERS - 3)
    teacher = model(PROMPTS).logits[:, :-1].flatten(0, 1)
    for child, row in zip(heads, found, strict=True):
        logits = child_of(model, child)(PROMPTS).logits[:, :-1].flatten(0, 1)
        values = compare(logits, teacher, PROMPTS[:, 1:].flatten())["kl"].unflatten(0, (10, -1)).mean(1)
        assert row == pytest.approx(values.float().numpy(), rel=0.05, abs=1e-3)
    assert (found[1] > 2 * found[0]).all()


def test_layers_of_the_parent_and_shared_layers_run_once(llama):
    scores = table(llama, batch_size=10)
    scores.look(np.arange(4), np.arange(10))
    assert scores.layers_asked == 5 * LAYERS  # four children and the parent
    # The parent and its copy share all, LATE three layers with them; MIXED and NO_ATTENTION their first.
    assert scores.layers_run == LAYERS + (LAYERS - 3) + 1 + 2 * (LAYERS - 1)
    assert shared_layers(CHILDREN) == pytest.approx(1 - scores.layers_run / scores.layers_asked)


def test_a_second_look_computes_nothing(llama):
    scores = table(llama)
    first = scores.look(np.array([0, 2]), np.array([1, 7]))
    assert scores.cells == 4
    run = scores.layers_run
    assert np.array_equal(scores.look(np.array([2, 0]), np.array([7, 1])), first[::-1, ::-1])
    assert scores.layers_run == run


def test_scores_outlive_a_kill_and_only_their_own(llama, tmp_path):
    cache = tmp_path / "scores.npz"
    killed = table(llama, cache=cache, identity="one", checkpoint_seconds=0)
    values = killed.look(np.arange(4), np.arange(6))
    resumed = table(llama, cache=cache, identity="one")
    assert resumed.cells == 24
    assert np.array_equal(resumed.look(np.arange(4), np.arange(6)), values)
    assert resumed.layers_run == 0
    assert table(llama, cache=cache, identity="another").cells == 0
    cache.write_bytes(b"damaged")
    with pytest.raises(TangramError, match=r"damaged.*delete it"):
        table(llama, cache=cache, identity="one")


@pytest.mark.parametrize("policy", [*HALVING, *registered("tangram.policies")])
def test_every_policy_finds_the_parents_copy_within_its_budget(llama, policy):
    scores = table(llama)
    assert choose(policy, scores, 32, np.random.default_rng(0)).candidate == 3
    assert scores.cells <= 32 + 1  # a duel looks at two


def test_after_a_kill_the_same_decisions_are_made(llama, tmp_path):
    options = {"cache": tmp_path / "scores.npz", "identity": "one", "checkpoint_seconds": 0}
    whole = table(llama)
    expected = choose("sparring", whole, 30, np.random.default_rng(5))
    killed = table(llama, **options)
    choose("sparring", killed, 12, np.random.default_rng(5))
    killed.save()
    resumed = table(llama, **options)
    assert choose("sparring", resumed, 30, np.random.default_rng(5)) == expected
    assert np.array_equal(np.isnan(resumed.values), np.isnan(whole.values))


def test_prompts_are_cut_from_sequences():
    assert cut_prompts(torch.arange(20).view(2, 10), 4).tolist()[:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cut_prompts(torch.arange(20).view(2, 10), 4).shape == (4, 4)
    with pytest.raises(TangramError, match="prompt_tokens"):
        cut_prompts(torch.zeros(2, 3), 4)


def test_a_broken_candidate_is_named(llama):
    def broken(kind, variant, layer):
        return {
            name: torch.full_like(tensor, torch.nan) for name, tensor in pieces(llama)(kind, variant, layer).items()
        }

    scores = CandidateScores(llama, PROMPTS, CHILDREN, broken, "kl", 4)
    with pytest.raises(TangramError, match=r"candidate \d: its outputs are not finite"):
        scores.look(np.arange(4), np.arange(2))


@torch.no_grad()
def test_a_layers_importance_is_the_kl_of_the_parent_without_it(parent):
    for module in (parent.model.layers[2].self_attn.o_proj, parent.model.layers[2].mlp.down_proj):
        for parameter in module.parameters():
            parameter.zero_()  # a layer that changes nothing
    found = layer_importance(parent, PROMPTS, 4)
    assert found.shape == (10, LAYERS)
    assert found[:, 2] == pytest.approx(0, abs=1e-6)
    nothing = LayerChoice("no-op", "no-op")
    without = Architecture((*PARENT_ONLY.layers[:3], nothing, *PARENT_ONLY.layers[4:]))
    logits = child_of(parent, without)(PROMPTS).logits[:, :-1]
    teacher = parent(PROMPTS).logits[:, :-1]
    kl = compare(logits.flatten(0, 1), teacher.flatten(0, 1), PROMPTS[:, 1:].flatten())["kl"].unflatten(0, (10, -1))
    assert found[:, 3] == pytest.approx(kl.mean(1).numpy(), rel=1e-4, abs=1e-5)
