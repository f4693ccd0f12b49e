"""Merged KV heads: rotations that change nothing, planted rotations that are recovered, and the refit of outputs."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from replaced import replaced
from scipy.linalg import orthogonal_procrustes
from tiny_models import random_model, tiny_config

from tangram.blocks import get_block
from tangram.blocks.alignment import agreeing_rotations, aligned, rotate_keys, rotate_values
from tangram.blocks.calibration import Calibration
from tangram.blocks.gqa import head_outputs
from tangram.models.families import Shape, decoder_layers
from tangram.models.forward import layer_contexts

HEADS, KV_HEADS, SIZE, HIDDEN, LENGTH = 8, 4, 10, 24, 7
FAMILIES = {"llama": {"attention_bias": True}, "qwen2": {}, "qwen3": {}}


@pytest.fixture(params=FAMILIES)
def model(request):
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 50}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": SIZE}
    config = tiny_config(request.param, **sizes, **heads, **FAMILIES[request.param])
    return random_model(config, std=0.3).double().requires_grad_(False)


@pytest.fixture
def attention(model):
    return decoder_layers(model)[0].self_attn


@pytest.fixture
def hidden():
    return torch.randn(3, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def calibration(model, attention, hidden):
    context = layer_contexts(model, hidden[:1])[0]
    outputs = attention(hidden_states=hidden, **context)[0].flatten(0, 1)
    weights = torch.rand(len(outputs), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Calibration(hidden.flatten(0, 1), outputs, weights, 1e-9, context)


def with_weights(attention, weights):
    changed = copy.deepcopy(attention)
    changed.load_state_dict(weights)
    return changed


def test_rotated_heads_compute_what_they_did(attention, hidden, calibration):
    weights = aligned(attention, calibration.inputs, calibration.weights, 2)
    rotated = ("v_proj", "o_proj") if hasattr(attention, "k_norm") else ("q_proj", "k_proj", "v_proj", "o_proj")
    changes = {name: (weights[f"{name}.weight"] - getattr(attention, name).weight).abs().max() for name in rotated}
    assert min(changes.values()) > 0.01
    outputs = with_weights(attention, weights)(hidden_states=hidden, **calibration.context)[0].flatten(0, 1)
    torch.testing.assert_close(outputs, calibration.outputs, rtol=1e-12, atol=1e-12)


def test_heads_that_are_rotations_of_each_other_merge_exactly(model, attention, calibration, hidden):
    """The heads of each group become equal, then random rotations hide it; pooling them as they are is wrong."""
    normed = hasattr(attention, "k_norm")
    generator = torch.Generator().manual_seed(3)
    for projection in (attention.k_proj, attention.v_proj):
        for tensor in projection.parameters():
            heads = tensor.unflatten(0, (2, 2, SIZE))
            tensor.copy_(heads[:, :1].expand_as(heads).flatten(0, 2))
    turns = torch.linalg.qr(torch.randn(KV_HEADS, SIZE, SIZE, generator=generator, dtype=torch.float64))[0]
    weights = rotate_values(dict(attention.state_dict()), turns, HEADS)
    if not normed:
        angles = 6.3 * torch.rand(KV_HEADS, SIZE // 2, generator=generator, dtype=torch.float64)
        weights = rotate_keys(weights, torch.polar(torch.ones_like(angles), angles), HEADS)
    attention.load_state_dict(weights)
    outputs = attention(hidden_states=hidden, **calibration.context)[0]
    calibration = replace(calibration, outputs=outputs.flatten(0, 1))
    layer, shape = decoder_layers(model)[0], Shape.of(model.config)
    expected = layer(hidden, **calibration.context)
    for name, exact in (("gqa-2", True), ("gqa-mean-2", False)):
        merged = get_block("attention", name, shape).initialize(attention, calibration)
        child = replaced(model, 0, "attention", name, merged).double()
        found = child(hidden, **calibration.context)
        assert ((found - expected).abs().max() < 1e-4 * expected.abs().max()) == exact


def test_two_signals_are_rotated_as_by_orthogonal_procrustes():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(50, 2, 5, generator=generator, dtype=torch.float64)
    products = torch.einsum("tia,tjb->ijab", x, x)
    first, second = agreeing_rotations(products)
    expected, _ = orthogonal_procrustes(x[:, 1].numpy(), x[:, 0].numpy())  # x1 @ R is near x0
    np.testing.assert_allclose((first.T @ second).numpy(), expected.T, atol=1e-10)


def test_no_single_rotation_improves_the_agreement():
    """At the result, small rotations of any one of four signals lower the sum of inner products."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(60, 4, 6, generator=generator, dtype=torch.float64)
    rotations = agreeing_rotations(torch.einsum("tia,tjb->ijab", x, x))

    def agreement(q):
        return torch.einsum("iba,tia->tib", q, x).sum(1).square().sum()

    before = agreement(rotations)
    assert before > agreement(torch.eye(6, dtype=torch.float64).expand(4, 6, 6))
    for i in range(4):
        for _ in range(10):
            skew = 0.05 * torch.randn(6, 6, generator=generator, dtype=torch.float64)
            changed = rotations.clone()
            changed[i] = torch.linalg.matrix_exp(skew - skew.T) @ rotations[i]
            assert agreement(changed) < before


def test_outputs_of_merged_heads_are_those_of_the_child(model, attention, calibration, hidden):
    weights = get_block("attention", "gqa-mean-2", Shape.of(model.config)).initialize(attention, calibration)
    child = replaced(model, 0, "attention", "gqa-mean-2", weights).double().self_attn
    expected = child(hidden_states=hidden, **calibration.context)[0].flatten(0, 1)
    found = head_outputs(attention, weights, calibration) @ weights["o_proj.weight"].double().T
    bias = 0 if child.o_proj.bias is None else child.o_proj.bias
    torch.testing.assert_close(found + bias, expected, rtol=1e-5, atol=1e-5)


def test_outputs_of_merged_heads_are_fitted_by_ridge_regression(model, attention, calibration):
    """Least squares with one more row per weight, which shrinks them towards the pooled heads' projection."""
    block = get_block("attention", "gqa-1", Shape.of(model.config))
    calibration = replace(calibration, ridge=0.7)
    fitted = block.initialize(attention, calibration)
    prior = block.initialize(attention, replace(calibration, context=None))["o_proj.weight"].double().numpy()
    heads = head_outputs(attention, fitted, calibration).numpy()
    bias = 0 if attention.o_proj.bias is None else attention.o_proj.bias.numpy()
    share = (calibration.weights / calibration.weights.sum()).numpy()
    strength = 0.7 * np.mean(share @ heads**2)
    rows = np.vstack([np.sqrt(share)[:, None] * heads, np.sqrt(strength) * np.eye(HEADS * SIZE)])
    targets = np.vstack([np.sqrt(share)[:, None] * (calibration.outputs.numpy() - bias), np.sqrt(strength) * prior.T])
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0].T
    np.testing.assert_allclose(fitted["o_proj.weight"].numpy(), expected, rtol=1e-3, atol=1e-5)


def test_a_bfloat16_parent_gives_float32_weights(model, attention, calibration):
    inputs = calibration.inputs.bfloat16()
    context = layer_contexts(model.bfloat16(), inputs[None, :LENGTH])[0]
    known = Calibration(inputs, calibration.outputs.float(), torch.ones(len(inputs)), 1e-3, context)
    weights = get_block("attention", "gqa-2", Shape.of(model.config)).initialize(attention, known)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
