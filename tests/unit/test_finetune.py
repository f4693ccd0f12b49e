"""End-to-end distillation: the loss against its definition, and that it trains."""

import copy

import pytest
import torch
from torch.nn import functional

from tangram.activations import StreamedActivations
from tangram.config import Finetune
from tangram.finetune import Distillation, finetune
from tangram.models.loading import load_model
from tangram.training.loop import Checkpointing


@pytest.fixture
def parent(tiny_parent):
    return load_model(tiny_parent("llama"), "float32", "cpu")


@pytest.fixture
def child(parent):
    child = copy.deepcopy(parent)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in child.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return child


@pytest.fixture
def tokens(parent):
    return torch.randint(0, parent.config.vocab_size, (4, 10), generator=torch.Generator().manual_seed(2))


def test_losses_are_those_of_transformers_outputs(parent, child, tokens):
    states = StreamedActivations(parent, tokens, 4)
    settings = Finetune(kl_weight=0.5, cosine_weight=2.0, lm_weight=0.25)
    _, metrics = Distillation(child, parent, states, tokens, settings)(torch.tensor([0, 2]))
    chosen = tokens[[0, 2]]
    with torch.no_grad():
        ours = child(chosen, labels=chosen)
        teacher = parent(chosen)
        kl = torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=teacher.logits), torch.distributions.Categorical(logits=ours.logits)
        ).mean()
        hidden, cosines = child.model.embed_tokens(chosen), []
        positions = torch.arange(10)[None]
        rotary = child.model.rotary_emb(hidden, positions)
        for index, layer in enumerate(child.model.layers):
            hidden = layer(hidden, position_embeddings=rotary, position_ids=positions)
            target = states.hidden(index + 1)[[0, 2]]
            cosines.append((1 - functional.cosine_similarity(hidden, target, dim=-1)).mean())
    assert metrics["kl"] == pytest.approx(kl.item(), rel=1e-4)
    assert metrics["lm_loss"] == pytest.approx(ours.loss.item(), rel=1e-4)
    assert metrics["cosine"] == pytest.approx(torch.stack(cosines).mean().item(), rel=1e-4)


def test_total_is_the_weighted_sum(parent, child, tokens):
    settings = Finetune(kl_weight=0.5, cosine_weight=2.0, lm_weight=0.25)
    loss, metrics = Distillation(child, parent, StreamedActivations(parent, tokens, 4), tokens, settings)(
        torch.arange(4)
    )
    expected = 0.5 * metrics["kl"] + 2.0 * metrics["cosine"] + 0.25 * metrics["lm_loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_recomputing_layers_changes_no_gradient(parent, child, tokens):
    found = []
    for recompute in (False, True):
        states = StreamedActivations(parent, tokens, 4)
        loss = Distillation(child, parent, states, tokens, Finetune(), recompute=recompute)
        child.zero_grad()
        loss(torch.arange(4))[0].backward()
        found.append([parameter.grad.clone() for parameter in child.parameters()])
    assert all(map(torch.equal, *found))


def test_the_parent_itself_has_no_loss(parent, tokens):
    states = StreamedActivations(parent, tokens, 4)
    loss, _ = Distillation(copy.deepcopy(parent), parent, states, tokens, Finetune())(torch.arange(4))
    assert loss.item() == pytest.approx(0, abs=1e-5)


def test_finetuning_overfits_one_batch(parent, child, tokens):
    settings = Finetune(epochs=150, learning_rate=1e-2, batch_size=4, micro_batch_size=4, cosine_weight=0.1)
    rows = finetune(child, parent, StreamedActivations(parent, tokens, 4), tokens, settings, seed=0)
    kl = [row["value"] for row in rows if row["metric"] == "kl"]
    assert kl[-1] < 0.05 * kl[0]


def test_interrupted_finetuning_equals_uninterrupted(parent, child, tokens, tmp_path):
    settings = Finetune(epochs=3, batch_size=2, micro_batch_size=1)
    states = StreamedActivations(parent, tokens, 4)
    undisturbed = copy.deepcopy(child)
    expected = finetune(undisturbed, parent, states, tokens, settings, seed=0)
    checkpointing = Checkpointing(tmp_path / "state", 0.0, "run")

    class KilledError(Exception):
        pass

    steps = 0

    def kill(*_):
        nonlocal steps
        steps += 1
        if steps > 6:  # micro-batches: in the middle of the fourth optimizer step
            raise KilledError

    killed = copy.deepcopy(child)
    handle = killed.model.norm.register_forward_hook(kill)
    with pytest.raises(KilledError):
        finetune(killed, parent, states, tokens, settings, 0, checkpointing=checkpointing)
    handle.remove()
    resumed = copy.deepcopy(child)
    assert finetune(resumed, parent, states, tokens, settings, 0, checkpointing=checkpointing) == expected
    for ours, theirs in zip(resumed.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
