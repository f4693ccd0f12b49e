"""Pruning with compensation against brute force, least squares and masked attention."""

import itertools

import numpy as np
import pytest
import torch
from replaced import replaced
from tiny_models import random_model, tiny_config

from tangram.activations import StreamedActivations
from tangram.blocks import get_block
from tangram.blocks.calibration import Calibration
from tangram.blocks.heads import kv_heads_of
from tangram.blocks.moments import accumulate, damped, moments_of
from tangram.blocks.pruning import refit, remaining_groups, removal_order
from tangram.config import BlockDistillation, Pruning
from tangram.library.distill import LayerDistillation
from tangram.library.moments import read_moments, write_moments
from tangram.models.families import Shape, decoder_layers
from tangram.models.forward import layer_contexts


def problem_of(inputs=12, outputs=5, tokens=60):
    """Return inputs ``(tokens, inputs)`` with means and correlations, and a matrix ``(outputs, inputs)``."""
    generator = torch.Generator().manual_seed(3)
    mixed = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64)
    x = mixed @ torch.randn(inputs, inputs, generator=generator, dtype=torch.float64) + 0.5
    return x, torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)


def least_squares_loss(x, weight, columns):
    """Return the mean squared error of the best matrix of some columns; solved by NumPy."""
    targets = (x @ weight.T).numpy()
    fitted = np.linalg.lstsq(x[:, columns].numpy(), targets, rcond=None)[0]
    return float(np.square(x[:, columns].numpy() @ fitted - targets).sum() / len(x))


@pytest.mark.parametrize("size", [1, 3])
def test_each_removal_is_the_one_of_least_loss(size):
    """One group at a time: among all that remain, the removed one increases the loss of the best refit least."""
    x, weight = problem_of()
    order = removal_order(x.T @ x / len(x), weight, size).tolist()
    remaining = list(range(12 // size))
    columns = {group: list(range(group * size, (group + 1) * size)) for group in remaining}
    for removed in order[:-1]:
        losses = {
            group: least_squares_loss(x, weight, [c for g in remaining if g != group for c in columns[g]])
            for group in remaining
        }
        assert losses[removed] == pytest.approx(min(losses.values()), rel=1e-6)
        remaining.remove(removed)


@pytest.mark.parametrize("number", [1, 5, 11])
def test_smaller_sets_are_the_ends_of_one_order(number):
    x, weight = problem_of()
    order = removal_order(x.T @ x, weight, rounds=4).tolist()
    assert remaining_groups(x.T @ x, weight, number, rounds=4).tolist() == sorted(order[-number:])


@pytest.mark.parametrize("rounds", [None, 1, 4, 5])
def test_every_input_leaves_once(rounds):
    x, weight = problem_of()
    order = removal_order(x.T @ x, weight, rounds=rounds)
    assert sorted(order.tolist()) == list(range(12))


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_refit_is_least_squares_with_a_prior(has_bias):
    """NumPy's least squares with one extra row per column, which pulls it towards the whole matrix's."""
    x, weight = problem_of()
    bias = torch.randn(5, dtype=torch.float64) if has_bias else None
    tokens = torch.rand(len(x), dtype=torch.float64)
    moments, columns, ridge = accumulate([(x, x, x, tokens)]), torch.tensor([1, 4, 5, 9]), 0.3
    fitted, fitted_bias = refit(moments, weight, bias, columns, ridge)
    share = tokens / tokens.sum()
    mean = share @ x if has_bias else torch.zeros(12, dtype=torch.float64)
    root = share.sqrt()[:, None]
    centered = root * (x - mean)
    strength = ridge * centered.square().sum(0).mean()
    rows = torch.vstack([centered[:, columns], strength.sqrt() * torch.eye(4)])
    targets = torch.vstack([centered @ weight.T, strength.sqrt() * weight[:, columns].T])
    expected = torch.from_numpy(np.linalg.lstsq(rows.numpy(), targets.numpy(), rcond=None)[0].T)
    torch.testing.assert_close(fitted.double(), expected, rtol=1e-4, atol=1e-5)
    if bias is not None:
        shifted = bias + weight @ mean - expected @ mean[columns]
        torch.testing.assert_close(fitted_bias.double(), shifted, rtol=1e-4, atol=1e-4)


def test_a_large_ridge_keeps_the_columns():
    x, weight = problem_of()
    columns = torch.tensor([0, 7])
    fitted, _ = refit(accumulate([(x, x, x, torch.ones(60))]), weight, None, columns, 1e6)
    torch.testing.assert_close(fitted.double(), weight[:, columns], rtol=1e-4, atol=1e-4)


@pytest.fixture(params=["llama-biases", "llama", "qwen2", "qwen3"])
def model(request):
    biases = {"attention_bias": True, "mlp_bias": True} if request.param == "llama-biases" else {}
    sizes = {"hidden_size": 36, "intermediate_size": 48, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = tiny_config(request.param.partition("-")[0], **sizes, **biases, vocab_size=50)
    return random_model(config, std=0.3).requires_grad_(False)


def local_problem(model, **settings):
    tokens = torch.randint(0, 50, (6, 20), generator=torch.Generator().manual_seed(0))
    states = StreamedActivations(model, tokens, 4)
    section = BlockDistillation(epochs=0, **settings)
    return LayerDistillation(model, 1, states.hidden(1), states.hidden(2), section)


def test_narrower_ffns_are_nested_and_better_than_selection(model):
    problem, ffn = local_problem(model), decoder_layers(model)[1].mlp
    previous = None
    for ratio in ("0.84", "0.5", "0.17"):
        piece = problem.distill("ffn", f"width-{ratio}", 0)
        rows = {tuple(row) for row in piece.weights["up_proj.weight"].tolist()}
        assert rows <= {tuple(row) for row in ffn.up_proj.weight.tolist()}
        assert previous is None or rows < previous
        previous = rows
    losses = {}
    for selection in ("obs", "contribution"):
        problem.pruning = Pruning(selection=selection, ridge=1e-3)
        layer = replaced(model, 1, "ffn", "width-0.5", problem.distill("ffn", "width-0.5", 0).weights)
        losses[selection] = problem.loss(layer, "ffn", slice(problem.training))
    assert losses["obs"] < losses["contribution"]


def test_contribution_copies_the_parents_columns(model):
    problem, ffn = local_problem(model), decoder_layers(model)[1].mlp
    problem.pruning = Pruning(selection="contribution")
    found = problem.distill("ffn", "width-0.5", 0).weights["down_proj.weight"]
    magnitude = problem.measure("ffn").inner_magnitude * ffn.down_proj.weight.norm(dim=0)
    channels = sorted(range(48), key=lambda channel: -magnitude[channel])[:24]
    assert torch.equal(found, ffn.down_proj.weight[:, sorted(channels)])


@pytest.mark.parametrize("heads", [6, 4, 3, 2, 1])
def test_remaining_heads_compute_what_they_do_in_the_parent(model, heads):
    """The parent with an output matrix that reads only the remaining heads gives the same outputs."""
    layer, shape = decoder_layers(model)[1], Shape.of(model.config)
    problem = local_problem(model)
    block, moments = get_block("attention", f"heads-{heads}", shape), problem.measure("attention")
    remaining = block.remaining(layer.self_attn, moments, 0.1)
    kv_heads = {int(head) // 3 for head in remaining}
    assert len(remaining) == heads
    assert len(kv_heads) == block.kv_heads
    weights = block.initialize(layer.self_attn, problem.calibration("attention", moments))
    child = replaced(model, 1, "attention", f"heads-{heads}", weights)
    assert child.self_attn.k_proj.out_features == block.kv_heads * shape.head_dim
    masked = decoder_layers(random_model(model.config, std=0.3).requires_grad_(False))[1]
    masked.load_state_dict(layer.state_dict())
    columns = (remaining[:, None] * shape.head_dim + torch.arange(shape.head_dim)).flatten()
    masked.self_attn.o_proj.weight.zero_()
    masked.self_attn.o_proj.weight[:, columns] = weights["o_proj.weight"]
    if "o_proj.bias" in weights:
        masked.self_attn.o_proj.bias.copy_(weights["o_proj.bias"])
    hidden = torch.randn(2, 7, 36, generator=torch.Generator().manual_seed(1))
    context = layer_contexts(model, hidden)[0]
    torch.testing.assert_close(child(hidden, **context), masked(hidden, **context), rtol=1e-4, atol=1e-4)


def test_the_groups_that_remain_are_the_best_of_all(model):
    """With one key-value head left of three, or two, no other choice has a smaller loss after its own refit."""
    layer, problem = decoder_layers(model)[1], local_problem(model)
    moments = problem.measure("attention")
    output, width = layer.self_attn.o_proj, 3 * Shape.of(model.config).head_dim
    moment = damped(moments.inner_moment, 0.1)

    def loss(groups):
        columns = torch.cat([torch.arange(g * width, (g + 1) * width) for g in groups])
        fitted, _ = refit(moments, output.weight, None, columns, 0.1)
        error = output.weight.double().clone()
        error[:, columns] -= fitted.double()
        return float((error @ moment * error).sum())

    order = removal_order(moment, output.weight, width).tolist()
    pairs = list(itertools.combinations(range(3), 2))
    assert min(pairs, key=loss) == tuple(sorted(order[1:]))


@pytest.mark.parametrize(
    ("heads", "parent_heads", "parent_kv_heads", "expected"),
    [
        (6, 9, 3, 2),
        (3, 9, 3, 1),
        (4, 9, 3, 2),
        (8, 9, 3, None),
        (7, 9, 3, None),
        (9, 9, 3, 3),
        (5, 8, 8, 5),
        (12, 32, 8, 3),
    ],
)
def test_the_fewest_key_value_heads_serve_the_query_heads(heads, parent_heads, parent_kv_heads, expected):
    assert kv_heads_of(heads, parent_heads, parent_kv_heads) == expected


@pytest.mark.parametrize("normalize", ["tensor", "token"])
@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_measured_moments_are_those_of_the_activations(tmp_path, kind, normalize):
    config = tiny_config("llama", hidden_size=32, num_attention_heads=4, vocab_size=50)
    model = random_model(config, std=0.3).requires_grad_(False)
    problem = local_problem(model, normalize=normalize)
    layer = decoder_layers(model)[1]
    calibration = problem.calibration(kind)
    parent = layer.self_attn if kind == "attention" else layer.mlp
    expected = moments_of(parent, calibration.inputs, calibration.outputs, calibration.weights)
    found = problem.measure(kind)
    for name, tensor in found.tensors().items():
        torch.testing.assert_close(tensor, expected.tensors()[name], rtol=1e-3, atol=1e-4)
    write_moments(tmp_path / "moments.safetensors", {1: found, 2: found}, {})
    stored = read_moments(tmp_path / "moments.safetensors")(2)
    for name, tensor in found.tensors().items():
        assert torch.equal(stored.tensors()[name], tensor)


def test_a_calibration_without_a_pass_measures_its_activations():
    x, weights = torch.randn(30, 8), torch.rand(30)
    parent = random_model(tiny_config("llama", hidden_size=8, num_attention_heads=2), std=0.3).model.layers[0].mlp
    calibration = Calibration(x, parent(x).detach(), weights, 1e-3)
    found = calibration.moments(parent)
    share = (weights / weights.sum()).double()
    hidden = (parent.act_fn(parent.gate_proj(x)) * parent.up_proj(x)).double().detach()
    torch.testing.assert_close(found.inner_moment, hidden.T @ (hidden * share[:, None]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.cross_moment, x.double().T @ (calibration.outputs.double() * share[:, None]))
