"""The parent's votes: readings equal to a loop without caches, kept, free at a second look, and without values."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_children import MIXED, NO_ATTENTION, PARENT_ONLY, VOCABULARY, child_of, pieces
from torch.nn import functional

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.errors import TangramError
from tangram.selection.judge import JudgedScores

LATE = Architecture((*PARENT_ONLY.layers[:3], LayerChoice("no-op", "width-0.5"), LayerChoice("gqa-1", "no-op")))
CHILDREN = [MIXED, NO_ATTENTION, LATE, PARENT_ONLY]
PROMPTS = torch.randint(2, VOCABULARY, (6, 7), generator=torch.Generator().manual_seed(3))
WRITTEN = 5


def table(parent, **options) -> JudgedScores:
    return JudgedScores(parent, PROMPTS, CHILDREN, pieces(parent), WRITTEN, batch_size=4, **options)


@torch.no_grad()
def test_readings_are_those_of_a_loop_over_whole_sequences(parent):
    judged = table(parent)
    found = judged.look(np.arange(4), np.arange(6))
    for arm, architecture in enumerate(CHILDREN):
        child, ids = child_of(parent, architecture), PROMPTS
        for _ in range(WRITTEN):
            ids = torch.cat([ids, child(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        assert judged.continuations[arm].tolist() == ids[:, 7:].tolist()
        logits = parent(ids, use_cache=False).logits[:, 6:-1]
        losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 7:].flatten(), reduction="none")
        assert found[arm] == pytest.approx(losses.view(6, WRITTEN).mean(1).numpy(), rel=1e-4, abs=1e-5)


@torch.no_grad()
def test_a_child_writes_with_its_own_head_and_the_parent_judges(llama):
    model = llama.bfloat16()
    judged = JudgedScores(model, PROMPTS, [replace(MIXED, head="parent@bf16")], pieces(model), WRITTEN, 4)
    (found,) = judged.look(np.arange(1), np.arange(6))
    child = child_of(model, MIXED)
    first = child(PROMPTS).logits[:, -1].argmin(-1)  # the head's weights have the other sign
    assert judged.continuations[0, :, 0].tolist() == first.tolist()
    ids = torch.cat([PROMPTS, torch.from_numpy(judged.continuations[0])], 1)
    logits = model(ids, use_cache=False).logits[:, 6:-1].float()
    losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 7:].flatten(), reduction="none")
    assert found == pytest.approx(losses.view(6, WRITTEN).mean(1).numpy(), rel=0.02)


def test_a_second_look_writes_and_reads_nothing(llama, monkeypatch):
    judged = table(llama)
    first = judged.look(np.array([0, 2]), np.array([1, 4]))
    assert judged.cells == 4
    monkeypatch.setattr(judged, "_measure", lambda *_: pytest.fail("it was known"))
    assert np.array_equal(judged.look(np.array([2, 0]), np.array([4, 1])), first[::-1, ::-1])


def test_continuations_and_readings_outlive_only_their_own_kill(llama, tmp_path):
    cache = tmp_path / "judge.npz"
    killed = table(llama, cache=cache, identity="one", checkpoint_seconds=0)
    killed.look(np.arange(3), np.arange(4))
    resumed = table(llama, cache=cache, identity="one")
    assert np.array_equal(resumed.values, killed.values, equal_nan=True)
    assert np.array_equal(resumed.continuations, killed.continuations)
    assert (resumed.continuations[:3, :4] >= 0).all()
    assert table(llama, cache=cache, identity="another").cells == 0


def test_a_child_whose_outputs_are_not_finite_gets_no_vote(llama):
    def broken(kind, variant, layer):
        return {name: torch.full_like(t, torch.nan) for name, t in pieces(llama)(kind, variant, layer).items()}

    judged = JudgedScores(llama, PROMPTS, [MIXED], broken, WRITTEN, 4)
    with pytest.raises(TangramError, match="candidate 0: its outputs are not finite"):
        judged.look(np.arange(1), np.arange(2))
    assert judged.cells == 0
