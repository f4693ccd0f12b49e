"""Structured variants as pieces: their initial weights, their training, and refused sizes."""

import pytest
import torch
from replaced import replaced

from tangram.activations import StreamedActivations
from tangram.blocks import get_block
from tangram.blocks.moments import accumulate, inner_activations
from tangram.blocks.projections import projection_moments
from tangram.config import BlockDistillation
from tangram.errors import TangramError
from tangram.library.distill import LayerDistillation
from tangram.models.families import Shape, decoder_layers, subblock
from tangram.models.loading import load_model
from tangram.models.operators import StructuredLinear
from tangram_studies.blocks import butterfly

VARIANTS = ("butterfly-8", "monarch", "lowrank-8", "ntk-8")


@pytest.fixture(params=["llama", "mistral", "qwen2", "qwen3"])
def model(tiny_parent, request):
    options = {"attention_bias": True, "mlp_bias": True} if request.param == "llama" else {}
    return load_model(tiny_parent(request.param, **options), "float32", "cpu").requires_grad_(False)


def local_problem(model, **settings):
    tokens = torch.randint(0, model.config.vocab_size, (8, 16), generator=torch.Generator().manual_seed(0))
    states = StreamedActivations(model, tokens, 4)
    return LayerDistillation(model, 1, states.hidden(1), states.hidden(2), BlockDistillation(**settings))


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_trained_pieces_are_no_worse_than_their_initial_weights(model, kind, monkeypatch):
    problem = local_problem(model, epochs=3)
    losses = {}
    monkeypatch.setattr(butterfly, "LEARNING_STEPS", 5)
    for variant in VARIANTS:
        piece = problem.distill(kind, variant, seed=0)
        assert piece.curve
        layer = replaced(model, 1, kind, variant, piece.weights)
        operators = [part for part in layer.modules() if isinstance(part, StructuredLinear)]
        assert operators
        losses[variant] = problem.held_out_loss(layer, kind)
        assert losses[variant] == pytest.approx(min(piece.loss_before, piece.loss_after), rel=1e-4)
        assert sum(t.numel() for t in piece.weights.values()) < sum(
            p.numel() for p in subblock(decoder_layers(model)[1], kind).parameters()
        )
    assert max(losses.values()) < 1.5  # a missing block has a loss of about 1


def test_equal_seeds_give_equal_bytes(tiny_parent, monkeypatch):
    monkeypatch.setattr(butterfly, "LEARNING_STEPS", 5)
    model = load_model(tiny_parent("llama"), "float32", "cpu").requires_grad_(False)
    for variant in ("butterfly-8", "ntk-8"):
        one, other = (local_problem(model, epochs=1).distill("attention", variant, seed=3) for _ in range(2))
        assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_a_rank_that_loses_nothing_changes_nothing(tiny_parent):
    """If the parent's matrices are of low rank, low-rank pieces equal them, attention included."""
    model = load_model(tiny_parent("qwen2"), "float32", "cpu").requires_grad_(False)
    layer = decoder_layers(model)[1]
    for linear in (m for m in layer.modules() if isinstance(m, torch.nn.Linear)):
        u, s, v = torch.linalg.svd(linear.weight, full_matrices=False)
        linear.weight.copy_(u[:, :5] * s[:5] @ v[:5])
    problem = local_problem(model, epochs=0)
    for kind in ("attention", "ffn"):
        assert problem.distill(kind, "lowrank-5", 0).loss_before < 1e-6
        assert problem.distill(kind, "lowrank-2", 0).loss_before > 1e-3


def test_what_a_projection_reads_is_recovered_from_the_outputs(model):
    problem = local_problem(model)
    layer, seen = decoder_layers(model)[1], {}
    for kind in ("attention", "ffn"):
        module = subblock(layer, kind)
        hooks = [
            part.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0].flatten(0, 1)))
            for name, part in module.named_children()
            if isinstance(part, torch.nn.Linear)
        ]
        layer(problem.inputs[: problem.training], **problem.context)
        for hook in hooks:
            hook.remove()
        found, weights = projection_moments(kind, problem.measure(kind)), problem.weights.flatten().double()
        assert found.keys() == {name for name in seen if getattr(module, name, None) is not None}
        for name, moment in found.items():
            read = seen[name].double()
            expected = read.T @ (read * weights[:, None]) / weights.sum()
            torch.testing.assert_close(moment, expected, atol=1e-5, rtol=1e-4)
        calibration, last = problem.calibration(kind), "o_proj" if kind == "attention" else "down_proj"
        inner = inner_activations(module, calibration.inputs, calibration.outputs).double()
        weight = getattr(module, last).weight.double()
        expected = seen[last].double() @ weight.T  # the inputs' contribution to the outputs
        torch.testing.assert_close(inner @ weight.T, expected, atol=1e-4, rtol=1e-3)
        seen.clear()


def test_second_moment_weighs_tokens():
    x, weights = torch.randn(50, 4), torch.rand(50)
    found = accumulate([(x, x, x, weights)]).input_moment
    expected = sum(w * torch.outer(row, row) for w, row in zip(weights / weights.sum(), x, strict=True))
    torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=1e-4)


def test_second_moments_of_bfloat16_are_summed_in_float32():
    x, weights = torch.randn(4096, 16).bfloat16(), torch.rand(4096)
    exact = x.double().T @ (x.double() * (weights.double() / weights.double().sum())[:, None])
    found = accumulate([(x, x, x, weights)])
    torch.testing.assert_close(found.inner_moment, exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.input_moment, exact)


def test_operators_larger_than_their_matrices_are_refused(tiny_parent):
    model = load_model(tiny_parent("llama"), "float32", "cpu")
    shape = Shape.of(model.config)
    with pytest.raises(
        TangramError, match=r"ffn 'lowrank-64' has no fewer weights .* 32 x 64; choose a smaller number"
    ):
        get_block("ffn", "lowrank-64", shape).overrides()
    assert get_block("attention", "lowrank-12", shape).overrides() == {"structured": ["attention=lowrank-12"]}
