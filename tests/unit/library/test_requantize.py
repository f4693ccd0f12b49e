"""Matrices of 8 bits: the same as floats, the same when they come back untrained, compensated when trained."""

import pytest
import torch
from tiny_children import QUANTIZED, child_of
from torch import nn

from tangram.library.requantize import round_again, to_float
from tangram.library.rounding import round_to_nearest
from tangram.models.quantized import Int8Linear, ScaledLinear


@pytest.fixture
def child(llama):
    child = child_of(llama, QUANTIZED)
    for module in child.modules():
        if isinstance(module, Int8Linear):  # so that each row has an entry of 127, as rounded rows have
            module.weight, scale = round_to_nearest(module.weight.float() * module.scale[:, None])
            module.scale.data = scale
    return child


@pytest.fixture
def tokens(llama):
    return torch.randint(0, llama.config.vocab_size, (6, 12), generator=torch.Generator().manual_seed(0))


def scaled_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, ScaledLinear)}


def test_a_model_in_floats_has_the_same_matrices(child):
    old = scaled_of(child)
    assert {name.split(".")[-1] for name in old} >= {"q_proj", "down_proj", "lm_head"}
    replaced = to_float(child)
    assert replaced == old
    assert not scaled_of(child)
    for name, scaled in old.items():
        linear = child.get_submodule(name)
        assert type(linear) is nn.Linear
        assert torch.equal(linear.weight, scaled.matrix()), name


def test_matrices_that_were_not_trained_come_back(child, tokens):
    before = {name: tensor.clone() for name, tensor in child.state_dict().items()}
    round_again(child, to_float(child), tokens)
    after = child.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        if tensor.dtype == torch.int8:
            assert torch.equal(after[name], tensor), name
        else:
            torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=0)


@torch.no_grad()
def test_trained_matrices_are_rounded_with_compensation(child, tokens):
    """The outputs of the rounded matrices are nearer to the trained ones' than those of the nearest values."""
    child.eval()
    replaced = to_float(child)
    generator = torch.Generator().manual_seed(1)
    for name in replaced:
        weight = child.get_submodule(name).weight
        weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=generator)
    trained = {name: child.get_submodule(name).weight.clone() for name in replaced}
    name = min(replaced)  # of the first layer with such a matrix, so that its inputs are the trained model's
    inputs = []
    hook = child.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, -2)))
    child(tokens)
    hook.remove()
    round_again(child, replaced, tokens)
    for each, matrix in trained.items():
        assert (scaled_of(child)[each].matrix() - matrix).abs().max() < 0.05 * matrix.abs().max(), each
    smooth, rounded = replaced[name].smooth, scaled_of(child)[name]
    nearest, scale = round_to_nearest(trained[name] / smooth)
    errors = [
        ((matrix - trained[name]) @ inputs[0].t()).norm()
        for matrix in (rounded.matrix(), nearest.float() * scale[:, None] * smooth)
    ]
    assert errors[0] < errors[1]


def test_a_model_without_such_matrices_does_not_change(llama, tokens):
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    replaced = to_float(llama)
    round_again(llama, replaced, tokens)
    assert replaced == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())
