"""End-to-end distillation: the loss against its definition, and that it trains."""

import copy

import pytest
import torch
from torch.nn import functional

from tangram.activations import StreamedActivations
from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.child.assemble import assemble_state, build_config, save_child
from tangram.config import BlockDistillation, Finetune
from tangram.corpus.tokens import read_tokens
from tangram.evaluation.text import compare_on_text
from tangram.finetune import Distillation, TextKL, budget_of, finetune
from tangram.library.distill import LayerDistillation
from tangram.library.quantize import quantize_head, quantize_subblock
from tangram.models.loading import load_model
from tangram.tables import CORPUS, VALIDATION_KL, write_table
from tangram.training.loop import Checkpointing
from tangram.training.parallel import World


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


PRECISIONS = Architecture(
    (LayerChoice("parent@int8", "width-0.5@int8"), LayerChoice("parent", "parent@bf16"), LayerChoice("gqa-1", "no-op")),
    "parent@int8",
)


def pieces_of(parent, tokens):
    """Return a library of initial pieces and their quantized ones."""
    states = StreamedActivations(parent, tokens, 4)

    def piece(kind, variant, layer):
        if kind == "head":
            return quantize_head(parent, states, variant, 0.25).weights
        inputs, outputs = states.hidden(layer), states.hidden(layer + 1)
        problem = LayerDistillation(parent, layer, inputs, outputs, BlockDistillation(epochs=0))
        name, _, precision = variant.partition("@")
        source = None if name == "parent" else problem.distill(kind, name, 0).weights
        return quantize_subblock(problem, kind, variant, source).weights if precision else source

    return piece


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def quantized(request, tiny_parent, tokens, tmp_path):
    """A parent, and a child with pieces in int8 and bf16 that was loaded from disk."""
    folder = tiny_parent("llama", tie_word_embeddings=request.param)
    parent = load_model(folder).requires_grad_(False)
    state = assemble_state(parent.state_dict(), PRECISIONS, pieces_of(parent, tokens))
    save_child(state, build_config(parent.config, PRECISIONS), folder, tmp_path / "child", {})
    return parent, load_model(tmp_path / "child")


def test_matrices_in_int8_are_trained_and_rounded_again(quantized, tokens, tmp_path):
    parent, child = quantized
    states = StreamedActivations(parent, tokens, 4)
    before = {name: tensor.clone() for name, tensor in child.state_dict().items()}
    settings = Finetune(budget={"epochs": 8}, learning_rate=3e-4)
    loss = Distillation(child, parent, states, tokens, settings)
    with torch.no_grad():
        first = loss(torch.arange(4))[0].item()
    finetune(child, parent, states, tokens, settings, seed=0)
    with torch.no_grad():
        assert loss(torch.arange(4))[0].item() < 0.8 * first
    after = child.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name], tensor) == name.endswith(".smooth"), name
    save_child(World().gather(child, torch.float32), child.config, tmp_path, tmp_path / "finetuned", {})
    loaded = load_model(tmp_path / "finetuned").eval()
    assert {name: t.dtype for name, t in loaded.state_dict().items()} == {name: t.dtype for name, t in before.items()}
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, child.eval()(tokens).logits)


def test_the_loss_of_a_quantized_child_is_that_of_inference(quantized, tokens):
    """Training computes with float sums, inference with sums of integers."""
    parent, child = quantized
    loss = Distillation(child, parent, StreamedActivations(parent, tokens, 4), tokens, Finetune())
    with torch.no_grad():
        of_inference = loss(torch.arange(4))[0].item()
    child.requires_grad_(True)
    assert loss(torch.arange(4))[0].item() == pytest.approx(of_inference, rel=1e-2)
    assert of_inference > 0.01


def test_the_parent_itself_has_no_loss(parent, tokens):
    states = StreamedActivations(parent, tokens, 4)
    loss, _ = Distillation(copy.deepcopy(parent), parent, states, tokens, Finetune())(torch.arange(4))
    assert loss.item() == pytest.approx(0, abs=1e-5)


def test_finetuning_overfits_one_batch(parent, child, tokens):
    settings = Finetune(budget={"epochs": 150}, learning_rate=1e-2, batch_size=4, micro_batch_size=4, cosine_weight=0.1)
    rows = finetune(child, parent, StreamedActivations(parent, tokens, 4), tokens, settings, seed=0)
    kl = [row["value"] for row in rows if row["metric"] == "kl"]
    assert kl[-1] < 0.05 * kl[0]


def test_interrupted_finetuning_equals_uninterrupted(parent, child, tokens, tmp_path):
    settings = Finetune(budget={"epochs": 3}, batch_size=2, micro_batch_size=1)
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


@pytest.mark.parametrize(
    ("budget", "steps"),
    [({"epochs": 1}, 6), ({"epochs": 3}, 18), ({"tokens": 3072}, 6), ({"tokens": 1}, 1), ({"tokens": 4000}, 8)],
)
def test_a_budget_of_epochs_or_tokens_is_a_number_of_steps(budget, steps):
    plan = budget_of(Finetune(budget=budget), 12, 256, seed=0)
    assert (plan.steps, plan.seconds) == (steps, None)


def test_a_budget_in_minutes_is_one_of_seconds():
    assert budget_of(Finetune(budget={"minutes": 0.5}), 12, 256, seed=0).seconds == 30


@pytest.fixture
def score(tmp_path):
    """A split of ten sequences, of which eight are points of the learning curve."""
    ids = torch.randint(0, 320, (10, 10), generator=torch.Generator().manual_seed(5))
    rows = [
        {"sequence_id": i, "source": "test", "input_ids": row, "documents": [str(i)], "document_starts": [0]}
        for i, row in enumerate(ids.tolist())
    ]
    write_table(rows, CORPUS, tmp_path / "score.parquet")
    return str(tmp_path / "score.parquet")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_learning_curve_is_that_of_shorter_trainings(tiny_parent, child, tokens, score, dtype):
    """With a constant rate, a training that ends at a point of the curve has its KL, rounded to the run's dtype."""
    parent, child = load_model(tiny_parent("llama"), dtype), child.to(getattr(torch, dtype))
    states = StreamedActivations(parent, tokens, 4)
    options = {
        "batch_size": 1,
        "micro_batch_size": 1,
        "schedule": "constant",
        "warmup_fraction": 0,
        "learning_rate": 1e-3,
    }

    def train(steps, validate):
        trained = copy.deepcopy(child)
        settings = Finetune(budget={"tokens": 10 * steps}, **options)
        kl = TextKL(trained, parent, score, None, 4) if validate else None
        rows = finetune(trained, parent, states, tokens, settings, seed=0, validation=kl)
        return trained, [row for row in rows if row["metric"] == VALIDATION_KL], rows

    trained, curve, rows = train(20, validate=True)
    curve = sorted(curve, key=lambda row: row["step"])
    plain, nothing, expected = train(20, validate=False)
    assert not nothing
    assert [row for row in rows if row["metric"] != VALIDATION_KL] == expected
    assert all(map(torch.equal, trained.parameters(), plain.parameters()))
    assert [(row["step"], row["tokens"]) for row in curve] == [(0, 0), (10, 100), (20, 200)]
    shorter, _, _ = train(10, validate=False)
    ids = read_tokens(score)[:8]
    final = StreamedActivations(parent, ids, 4).hidden(3)
    for row, model in zip(curve, (child, shorter, trained), strict=True):
        expected_kl = compare_on_text(model, parent, final, ids, 4, "test")["kl"].mean().item()
        assert row["value"] == pytest.approx(expected_kl, rel=1e-5)


def test_kl_by_sequence_is_that_of_whole_outputs(parent, child, score):
    ids = read_tokens(score)
    with torch.no_grad():
        logits = [torch.distributions.Categorical(logits=model(ids).logits[:, :-1]) for model in (parent, child)]
    expected = torch.distributions.kl_divergence(*logits).mean(dim=1)
    torch.testing.assert_close(TextKL(child, parent, score, None, 3).by_sequence(), expected, rtol=1e-3, atol=1e-5)
