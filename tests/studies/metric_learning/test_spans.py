"""The span-contrastive loss: pooling, exclusions, comparison with a loop, and its use in both distillations."""

import copy
import math

import pytest
import torch

from tangram.activations import StreamedActivations
from tangram.config import BlockDistillation, Finetune, SpanContrast
from tangram.finetune import Distillation, finetune, span_terms
from tangram.library.distill import LayerDistillation
from tangram.models.loading import load_model
from tangram.training.loop import Checkpointing
from tangram_studies.metric_learning.spans import SpanTerm, confusable, pool_spans, span_contrastive_loss

SMALL = SpanContrast(weight=0.5, spans=3, shortest=2, longest=4)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_pooling_is_the_mean_over_the_span():
    hidden, spans = random(2, 9, 4), torch.tensor([[0, 1, 4], [1, 2, 9], [1, 8, 9]])
    expected = torch.stack([hidden[s, a:b].mean(0) for s, a, b in spans.tolist()])
    torch.testing.assert_close(pool_spans(hidden, spans), expected)


def test_overlapping_and_equal_spans_are_not_contrasted():
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [9, 8, 1, 2, 7, 7, 7]])
    spans = torch.tensor([[0, 1, 3], [0, 2, 5], [0, 3, 5], [1, 2, 4], [1, 4, 6]])
    expected = torch.eye(5, dtype=torch.bool)
    for one, other in [(0, 1), (1, 2), (0, 3)]:  # overlap, overlap, the same tokens 1 2
        expected[one, other] = expected[other, one] = True
    assert torch.equal(confusable(spans, tokens), expected)


def test_the_loss_is_that_of_a_loop():
    child, parent = random(5, 8), random(5, 8, seed=1)
    excluded = torch.eye(5, dtype=torch.bool)
    excluded[0, 3] = excluded[3, 0] = True
    total = 0.0
    for i in range(5):
        cosines = [float(torch.cosine_similarity(child[i], parent[j], dim=0)) / 0.2 for j in range(5)]
        kept = [j for j in range(5) if j == i or not excluded[i, j]]
        total -= math.log(math.exp(cosines[i]) / sum(math.exp(cosines[j]) for j in kept)) / 5
    assert span_contrastive_loss(child, parent, excluded, 0.2).item() == pytest.approx(total, rel=1e-5)


def test_extreme_spans_are_finite():
    child = torch.zeros(4, 8, requires_grad=True)
    loss = span_contrastive_loss(child, torch.zeros(4, 8), torch.ones(4, 4, dtype=torch.bool), 0.1)
    loss.backward()
    assert loss.item() == 0  # all negatives are excluded
    assert child.grad.isfinite().all()


def test_one_massive_dimension_does_not_hide_the_others():
    """Raw hidden states with such a dimension are almost parallel; standardized ones are not."""
    parent, tokens = random(4, 32, 16), torch.arange(4 * 32).reshape(4, 32)
    parent[..., 0] += 1_000
    term = SpanTerm(SpanContrast(weight=1, spans=8), parent, tokens, seed=0)
    noisy = parent + 0.1 * random(4, 32, 16, seed=2)
    assert term(noisy, parent, torch.arange(4)).item() < 0.2
    shuffled = parent[torch.tensor([1, 2, 3, 0])]
    assert term(shuffled, parent, torch.arange(4)).item() > 3


@pytest.mark.parametrize("projection", [0, 8])
def test_the_projected_form_starts_at_the_parents_own_projection(projection):
    parent, tokens = random(4, 32, 16), torch.arange(4 * 32).reshape(4, 32)
    settings = SpanContrast(weight=1, projection=projection)
    term = SpanTerm(settings, parent, tokens, seed=0)
    assert [p.shape for p in term.parameters()] == ([(8, 16)] if projection else [])
    at_itself = term(parent, parent, torch.arange(4)).item()
    assert at_itself < term(parent + random(4, 32, 16, seed=3), parent, torch.arange(4)).item()


def test_the_same_sequences_have_the_same_spans():
    parent, tokens = random(4, 32, 16), torch.arange(4 * 32).reshape(4, 32)
    child = parent + random(4, 32, 16, seed=1)
    term, again = (SpanTerm(SpanContrast(weight=1), parent, tokens, seed=5) for _ in range(2))
    chosen = torch.tensor([2, 0])
    first = term(child[chosen], parent[chosen], chosen)
    term(child, parent, torch.arange(4))
    assert again(child[chosen], parent[chosen], chosen) == first


@pytest.fixture
def parent(tiny_parent):
    return load_model(tiny_parent("llama"), "float32", "cpu")


@pytest.fixture
def child(parent):
    child = copy.deepcopy(parent)
    with torch.no_grad():
        for i, parameter in enumerate(child.parameters()):
            parameter += 0.3 * parameter.std() * random(*parameter.shape, seed=i)
    return child


@pytest.fixture
def tokens(parent):
    return torch.randint(0, parent.config.vocab_size, (4, 12), generator=torch.Generator().manual_seed(2))


def test_weight_zero_makes_no_term(parent, child, tokens):
    states = StreamedActivations(parent, tokens, 4)
    assert span_terms(3, states, tokens, Finetune(), seed=0) is None
    _, metrics = Distillation(child, parent, states, tokens, Finetune())(torch.arange(4))
    assert set(metrics) == {"cosine", "kl"}


@pytest.mark.parametrize("projection", [0, 8])
def test_finetuning_by_spans_alone_brings_them_together(parent, child, tokens, projection):
    spans = SMALL.model_copy(update={"projection": projection, "depths": (0.3, 1.0)})
    settings = Finetune(
        budget={"epochs": 40},
        learning_rate=3e-3,
        batch_size=4,
        micro_batch_size=4,
        kl_weight=0,
        cosine_weight=0,
        span_contrast=spans,
    )
    rows = finetune(child, parent, StreamedActivations(parent, tokens, 4), tokens, settings, seed=0)
    values = [row["value"] for row in rows if row["metric"] == "span_contrast"]
    assert values[-1] < 0.5 * values[0]
    total = next(row["value"] for row in rows if row["metric"] == "loss")
    assert total == pytest.approx(0.5 * values[0], rel=1e-5)


def test_a_killed_finetuning_with_a_head_resumes_bit_for_bit(parent, child, tokens, tmp_path):
    spans = SMALL.model_copy(update={"projection": 8})
    settings = Finetune(budget={"epochs": 3}, batch_size=2, micro_batch_size=1, span_contrast=spans)
    states = StreamedActivations(parent, tokens, 4)
    undisturbed = copy.deepcopy(child)
    expected = finetune(undisturbed, parent, states, tokens, settings, 0)
    checkpointing = Checkpointing(tmp_path / "state.safetensors", 0.0, "run")
    killed, calls = copy.deepcopy(child), 0

    def kill(*_):
        nonlocal calls
        calls += 1
        if calls > 6:
            raise KeyboardInterrupt

    handle = killed.model.norm.register_forward_hook(kill)
    with pytest.raises(KeyboardInterrupt):
        finetune(killed, parent, states, tokens, settings, 0, checkpointing=checkpointing)
    handle.remove()
    resumed = copy.deepcopy(child)
    assert finetune(resumed, parent, states, tokens, settings, 0, checkpointing=checkpointing) == expected
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), undisturbed.parameters(), strict=True))


def test_blocks_are_distilled_with_the_term(parent, tokens):
    states = StreamedActivations(parent, tokens, 4)
    settings = BlockDistillation(epochs=3, span_contrast=SMALL.model_copy(update={"projection": 8}))
    inputs, outputs = states.hidden(1), states.hidden(2)
    piece = LayerDistillation(parent, 1, inputs, outputs, settings, tokens).distill("ffn", "width-0.5", seed=0)
    assert {row["metric"] for row in piece.curve} == {"loss", "normalized_mse", "span_contrast"}
    assert all("head" not in name for name in piece.weights)
    by_step = {row["metric"]: row["value"] for row in piece.curve if row["step"] == 0}
    assert by_step["loss"] == pytest.approx(by_step["normalized_mse"] + 0.5 * by_step["span_contrast"], rel=1e-5)
    with pytest.raises(ValueError, match="needs the tokens"):
        LayerDistillation(parent, 1, inputs, outputs, settings).distill("ffn", "width-0.5", seed=0)
