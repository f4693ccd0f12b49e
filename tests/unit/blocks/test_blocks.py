"""Initial weights of every block against explicit arithmetic."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replaced import replaced
from sklearn.linear_model import Ridge
from tiny_models import random_model, tiny_config

from tangram.blocks import get_block, moments
from tangram.blocks.calibration import Calibration, ridge_regression
from tangram.blocks.linear import fit_ridge
from tangram.blocks.moments import accumulate, moments_of
from tangram.blocks.width import channel_contribution
from tangram.errors import TangramError
from tangram.models.families import Shape, decoder_layers


@pytest.fixture
def model():
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_key_value_heads": 4}
    config = tiny_config("llama", **sizes, head_dim=10, vocab_size=50, attention_bias=True)
    return random_model(config, std=0.3).requires_grad_(False)


@pytest.fixture
def shape(model):
    return Shape.of(model.config)


def calibration_of(module, tokens=200, hidden=24):
    inputs = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(1))
    return Calibration(inputs, module(inputs), torch.ones(tokens), 1e-9)


def run(model, layer, hidden):
    from tangram.models.forward import layer_contexts

    return layer(hidden, **layer_contexts(model, hidden)[0])


def test_pooled_heads_are_the_means_of_their_groups(model, shape):
    attention = decoder_layers(model)[0].self_attn
    weights = get_block("attention", "gqa-mean-2", shape).initialize(attention, None)
    for name in ("k_proj", "v_proj"):
        full = getattr(attention, name).weight
        for group in range(2):
            rows = [full[head * 10 : (head + 1) * 10] for head in (2 * group, 2 * group + 1)]
            torch.testing.assert_close(
                weights[f"{name}.weight"][group * 10 : (group + 1) * 10], torch.stack(rows).mean(0)
            )
    assert weights["k_proj.bias"].shape == (20,)


def test_pooling_equal_heads_changes_nothing(model, shape):
    """Merging heads that are copies of each other is exact: query groups keep their order."""
    layer = decoder_layers(model)[0]
    for name in ("k_proj", "v_proj"):
        for tensor in getattr(layer.self_attn, name).parameters():
            heads = tensor.unflatten(0, (2, 2, 10))
            tensor.copy_(heads[:, :1].expand_as(heads).flatten(0, 2))
    weights = get_block("attention", "gqa-mean-2", shape).initialize(layer.self_attn, None)
    child = replaced(model, 0, "attention", "gqa-mean-2", weights)
    hidden = torch.randn(2, 7, 24)
    torch.testing.assert_close(run(model, child, hidden), run(model, layer, hidden))


def test_pooling_equal_heads_below_a_norm_changes_nothing():
    """OLMo 2's norm divides by the mean square over all heads, which is that of one head if they are copies."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_key_value_heads": 4, "vocab_size": 50, "pad_token_id": 0}
    model = random_model(tiny_config("olmo2", **sizes), std=0.3).requires_grad_(False)
    layer = decoder_layers(model)[0]
    for module in (layer.self_attn.k_proj, layer.self_attn.v_proj, layer.self_attn.k_norm):
        heads = module.weight.unflatten(0, (2, 2, 6))
        heads.copy_(heads[:, :1].expand_as(heads).clone())
    inputs = torch.randn(200, 24)
    calibration = Calibration(inputs, inputs, torch.ones(200), 1e-9)
    weights = get_block("attention", "gqa-2", Shape.of(model.config)).initialize(layer.self_attn, calibration)
    assert weights["k_norm.weight"].shape == (12,)
    child, hidden = replaced(model, 0, "attention", "gqa-2", weights), torch.randn(2, 7, 24)
    torch.testing.assert_close(run(model, child, hidden), run(model, layer, hidden))


def test_contribution_is_the_damage_of_removing_one_channel(model):
    ffn = decoder_layers(model)[0].mlp
    calibration = calibration_of(ffn)
    expected = []
    for channel in range(32):
        column = ffn.down_proj.weight[:, channel].clone()
        ffn.down_proj.weight[:, channel] = 0
        expected.append((ffn(calibration.inputs) - calibration.outputs).norm(dim=-1).mean())
        ffn.down_proj.weight[:, channel] = column
    found = channel_contribution(ffn, calibration.moments(ffn)).float()
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_channels_in_bfloat16_are_not_ranked_by_rounded_norms(model):
    """Norms of bfloat16 columns in bfloat16 would be equal for many channels, whatever is in them."""
    mlp = decoder_layers(model)[0].mlp.bfloat16()
    inputs = torch.randn(200, 24).bfloat16()
    found = channel_contribution(mlp, moments_of(mlp, inputs, mlp(inputs), torch.ones(200))).float()
    mean = (mlp.act_fn(mlp.gate_proj(inputs)) * mlp.up_proj(inputs)).float().abs().mean(0)
    torch.testing.assert_close(found, mean * mlp.down_proj.weight.float().norm(dim=0), rtol=1e-5, atol=0)


def test_heads_of_a_bfloat16_parent_are_pooled_in_float32(model, shape):
    attention = decoder_layers(model)[0].self_attn.bfloat16()
    found = get_block("attention", "gqa-mean-2", shape).initialize(attention, None)["k_proj.weight"]
    assert torch.equal(found, attention.k_proj.weight.double().unflatten(0, (2, 2, 10)).mean(1).flatten(0, 1).float())


def test_dropping_dead_channels_changes_nothing(model, shape):
    layer = decoder_layers(model)[0]
    dead = torch.randperm(32)[:16]
    layer.mlp.down_proj.weight[:, dead] = 0
    weights = get_block("ffn", "width-0.5", shape).initialize(layer.mlp, calibration_of(layer.mlp))
    child = replaced(model, 0, "ffn", "width-0.5", weights)
    assert child.mlp.up_proj.weight.shape == (16, 24)
    hidden = torch.randn(2, 7, 24)
    torch.testing.assert_close(run(model, child, hidden), run(model, layer, hidden))


def test_linear_ffn_recovers_a_planted_map(model, shape):
    """The more tokens, the smaller the ridge: 24 columns of 1.2 million tokens leave an error of 2e-5."""
    inputs = torch.randn(400, 24).repeat(3000, 1)
    planted, bias = torch.randn(24, 24), torch.randn(24)
    calibration = Calibration(inputs, inputs @ planted.T + bias, torch.ones(len(inputs)), 1e-9)
    weights = get_block("ffn", "linear", shape).initialize(decoder_layers(model)[0].mlp, calibration)
    torch.testing.assert_close(weights["linear_mlp.weight"], planted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(weights["linear_mlp.bias"], bias, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", ["linear", "linear-unbiased"])
def test_the_ridge_of_a_map_is_columns_per_token(model, shape, variant):
    """Ridge regression by scikit-learn on the tokens that count, with at least that strength."""
    generator = torch.Generator().manual_seed(1)
    inputs, outputs = (torch.randn(400, 24, generator=generator) + 1.0 for _ in range(2))
    counts = (torch.arange(400) % 4 > 0).float()  # 300 tokens
    for least, ridge in ((1e-9, 24 / 300), (0.5, 0.5)):
        calibration = Calibration(inputs, outputs, counts, least)
        assert fit_ridge(calibration, 24) == pytest.approx(ridge)
        weights = get_block("ffn", variant, shape).initialize(decoder_layers(model)[0].mlp, calibration)
        x, y, bias = inputs[counts > 0].double().numpy(), outputs[counts > 0].double().numpy(), variant == "linear"
        scale = (x.var(0) if bias else (x**2).mean(0)).mean()
        expected = Ridge(alpha=ridge * scale * len(x), fit_intercept=bias).fit(x, y)
        np.testing.assert_allclose(weights["linear_mlp.weight"].numpy(), expected.coef_, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_a_map_without_bias_is_the_best_through_zero(model, shape, kind):
    inputs = (torch.randn(400, 24) + 1.0).repeat(3000, 1)  # so many tokens that the ridge vanishes
    outputs = inputs @ torch.randn(24, 24) + torch.randn(24)  # a bias that the map cannot have
    calibration = Calibration(inputs, outputs, torch.rand(len(inputs)), 1e-9)
    layer = decoder_layers(model)[0]
    subblock, name = (layer.self_attn, "linear_attn") if kind == "attention" else (layer.mlp, "linear_mlp")
    weights = get_block(kind, "linear-unbiased", shape).initialize(subblock, calibration)
    root = calibration.weights.sqrt()[:, None]
    best = np.linalg.lstsq((root * inputs).numpy(), (root * outputs).numpy(), rcond=None)[0].T
    assert list(weights) == [f"{name}.weight"]
    np.testing.assert_allclose(weights[f"{name}.weight"].numpy(), best, rtol=1e-3, atol=1e-3)
    child = replaced(model, 0, kind, "linear-unbiased", weights)
    assert getattr(child.self_attn if kind == "attention" else child.mlp, name).bias is None


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_a_constant_is_the_weighted_mean_of_outputs(model, shape, kind):
    """No other vector has a smaller weighted squared error: its gradient there is 0."""
    generator = torch.Generator().manual_seed(3)
    outputs, weights = torch.randn(50, 24, generator=generator), torch.rand(50, generator=generator)
    layer = decoder_layers(model)[0]
    calibration = Calibration(outputs, outputs, weights, 0.0)
    subblock = layer.self_attn if kind == "attention" else layer.mlp
    piece = get_block(kind, "constant", shape).initialize(subblock, calibration)
    assert list(piece) == ["vector"]
    expected = np.average(outputs.double().numpy(), axis=0, weights=weights.double().numpy())
    np.testing.assert_allclose(piece["vector"].numpy(), expected, rtol=1e-6, atol=1e-7)
    child, hidden = replaced(model, 0, kind, "constant", piece), torch.randn(2, 5, 24)
    if kind == "attention":
        middle = hidden + piece["vector"]
        expected = middle + layer.mlp(layer.post_attention_layernorm(middle))
        torch.testing.assert_close(run(model, child, hidden), expected)
    else:
        without = replaced(model, 0, "ffn", "no-op", {})
        torch.testing.assert_close(run(model, child, hidden), run(model, without, hidden) + piece["vector"])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), ridge=st.floats(1e-6, 10.0))
def test_ridge_equals_augmented_least_squares(seed, ridge):
    """Ridge is least squares with one extra row per coefficient; solved here by NumPy's lstsq."""
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(40, 5)), random.normal(size=(40, 3))
    w = random.uniform(0.1, 1, size=40)
    known = accumulate([(torch.from_numpy(x), torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(w))])
    fitted, bias = ridge_regression(known, ridge)
    share = w / w.sum()
    mean_x, mean_y = share @ x, share @ y
    root = np.sqrt(share)[:, None]
    strength = ridge * np.mean(share @ (x - mean_x) ** 2)
    rows = np.vstack([root * (x - mean_x), np.sqrt(strength) * np.eye(5)])
    targets = np.vstack([root * (y - mean_y), np.zeros((5, 3))])
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0].T
    np.testing.assert_allclose(fitted.numpy(), expected, rtol=1e-5, atol=1e-6)  # the map is float32
    np.testing.assert_allclose(bias.numpy(), mean_y - expected @ mean_x, rtol=1e-5, atol=1e-6)


def test_a_fit_does_not_depend_on_the_tokens_held_at_a_time(model, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(*size, generator=generator) for size in ((100, 24), (100, 5)))
    weights = torch.rand(100, generator=generator)
    mlp, found = decoder_layers(model)[0].mlp, []
    for tokens in (16_384, 7):
        monkeypatch.setattr(moments, "FITTED_TOKENS", tokens)
        known = moments_of(mlp, x, y, weights)
        fitted = ridge_regression(known, 1e-3)
        found.append([*fitted, channel_contribution(mlp, known), known.input_moment, known.inner_moment])
    torch.testing.assert_close(found[1], found[0], check_dtype=False, rtol=1e-5, atol=1e-6)


def test_no_op_leaves_the_residual_and_the_other_subblock(model):
    layer = decoder_layers(model)[1]
    hidden = torch.randn(2, 5, 24)
    without_attention = replaced(model, 1, "attention", "no-op", {})
    assert without_attention.input_layernorm is None
    expected = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    torch.testing.assert_close(run(model, without_attention, hidden), expected)


def test_unknown_variants_are_refused(shape):
    with pytest.raises(TangramError, match="not a variant of ffn"):
        get_block("ffn", "gqa-1", shape)


@pytest.mark.parametrize(("ratio", "width"), [(0.7, 32), (0.5, 24), (0.3, 16), (0.01, 8)])
def test_width_is_the_nearest_multiple_of_eight(shape, ratio, width):
    block = get_block("ffn", f"width-{ratio}", replace(shape, intermediate=48))
    assert block.overrides() == {"intermediate_size": width}
