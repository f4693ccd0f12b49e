"""Second-order scores against the Fisher information by dense Jacobians, and against the true KL of small changes."""

import copy

import pytest
import torch
from tiny_children import CONFIGS, VOCABULARY
from tiny_models import random_model

from tangram.activations import StreamedActivations
from tangram.blocks import get_block
from tangram.models.families import Shape, decoder_layers, subblock
from tangram.models.forward import layer_contexts
from tangram.scores.second_order import SecondOrder, half_layer, label_gradients

LAYER, SAMPLES = 3, 200


@pytest.fixture(params=["llama-biases", "mistral-sliding", "qwen3"])
def model(request):
    """A tiny parent of 64 words."""
    torch.set_num_threads(1)
    return random_model(CONFIGS[request.param], 0.1).requires_grad_(False)


def tokens_of(sequences, length):
    return torch.randint(0, VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(1))


def child_of(model, kind, size):
    """Return the parent with noise on the weights of one subblock."""
    child, generator = copy.deepcopy(model), torch.Generator().manual_seed(2)
    for tensor in subblock(decoder_layers(child)[LAYER], kind).parameters():
        tensor.data += size * tensor.abs().mean() * torch.randn(tensor.shape, generator=generator)
    return child


def estimate(model, child, tokens, kind, samples=SAMPLES, batch=8):
    """Return the row of the child's subblock; its other subblocks are the parent's."""

    def library(kind, variant, layer):
        return subblock(decoder_layers(child)[layer], kind).state_dict()

    screening = SecondOrder(model, StreamedActivations(model, tokens, batch), samples, batch, seed=0)
    rows = list(screening.rows({kind: ["parent"], "head": ["parent@int8"]}, library))
    assert [row["layer"] for row in rows] == [4, 3, 2, 1, 0]
    assert all(row["value"] == pytest.approx(0, abs=1e-9) for row in rows if row["layer"] != LAYER)
    return rows[-1 - LAYER]


def run(model, tokens, kind, added=None):
    """Return the logits, and the output of a layer's subblock, to which ``added`` is added."""
    outputs = []

    def hook(module, inputs, output):
        tensor = output[0] if isinstance(output, tuple) else output
        outputs.append(tensor if added is None else tensor + added)
        return (outputs[-1], *output[1:]) if isinstance(output, tuple) else outputs[-1]

    handle = subblock(decoder_layers(model)[LAYER], kind).register_forward_hook(hook)
    try:
        return model(tokens).logits, outputs[0]
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_the_estimate_is_the_kl_of_a_small_change_of_one_token(model, kind):
    tokens, child = tokens_of(64, 1), child_of(model, kind, 0.02)
    row = estimate(model, child, tokens, kind)
    logits = [run(m.double(), tokens, kind)[0] for m in (copy.deepcopy(model), child)]
    kl = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=each) for each in logits))
    assert row["value"] == pytest.approx(kl.mean().item(), rel=0.1)
    assert (row["metric"], row["tokens"], row["kind"], row["variant"]) == ("screened_kl", 64, kind, "parent")


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_the_estimate_is_the_fisher_form_of_windows(model, kind):
    tokens, child = tokens_of(3, 6), child_of(model, kind, 0.5)
    row = estimate(model, child, tokens, kind)
    expected = 0.0
    for sequence in tokens.split(1):
        logits, output = run(model, sequence, kind)
        change = run(child, sequence, kind)[1] - output

        def moved(added, sequence=sequence):
            return run(model, sequence, kind, added)[0][0]

        jacobian = torch.autograd.functional.jacobian(moved, torch.zeros_like(output))[:, :, 0]  # (T', V, T, H)
        p = logits[0].softmax(-1)
        for window in (slice(0, 4), slice(4, 6)):
            effect = torch.einsum("avth,th->av", jacobian[:, :, window], change[0, window])
            variance = (p * effect.square()).sum(-1) - (p * effect).sum(-1).square()
            expected += variance.sum().item() / 2
    assert row["value"] == pytest.approx(expected / tokens.numel(), rel=0.15)
    assert row["tokens"] == tokens.numel()


def test_labels_are_those_of_the_parent_s_distribution(model):
    """The mean outer product of the gradients is the Fisher information at the last hidden state."""
    hidden = torch.randn(1, 1, model.config.hidden_size, generator=torch.Generator().manual_seed(3))
    found = label_gradients(model, hidden, 3000, torch.Generator().manual_seed(0))[:, 0, 0]

    def logits(states):
        return model.lm_head(model.model.norm(states))

    jacobian = torch.autograd.functional.jacobian(logits, hidden[0, 0])
    p = logits(hidden[0, 0]).softmax(-1)
    fisher = jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    assert (found.T @ found / len(found) - fisher).norm() < 0.1 * fisher.norm()
    assert found.mean(0).norm() < 0.1 * found.norm(dim=1).mean()


def test_two_halves_are_the_layer(model):
    layer, states = decoder_layers(model)[LAYER], torch.randn(2, 6, model.config.hidden_size)
    context = layer_contexts(model, states)[0]
    middle = half_layer(model, LAYER, "attention", {}, None)(states, **context)
    after = half_layer(model, LAYER, "ffn", {}, None)(middle, **context)
    assert torch.allclose(after, layer(states, **context), atol=1e-5)
    for kind in ("attention", "ffn"):
        block = get_block(kind, "no-op", Shape.of(model.config))
        assert torch.equal(half_layer(model, LAYER, kind, block.entries(), {})(states, **context), states)


def test_batches_change_no_estimate(model):
    tokens, child = tokens_of(5, 6), child_of(model, "ffn", 0.3)
    two, five = (estimate(model, child, tokens, "ffn", 3, size) for size in (2, 5))
    assert two["value"] > 1e-4
    assert two["value"] == pytest.approx(five["value"], rel=1e-3)
    assert two["standard_error"] == pytest.approx(five["standard_error"], rel=1e-3)
