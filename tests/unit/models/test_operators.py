"""Operators as linear layers in sequence."""

import pytest
import torch
from torch import nn

from tangram.models.operators import Factors, LowRankLinear, separate_factors
from tangram.models.quantized import Int8Linear, set_precision
from tangram_studies.blocks.operators import MonarchLinear, NTKFactorLinear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("operator", [LowRankLinear, NTKFactorLinear])
def test_factors_compute_the_operator_with_its_tensors(operator, bias):
    torch.manual_seed(0)
    low_rank = operator(24, 16, 5, bias=bias)
    if bias:
        low_rank.bias.data.normal_()
    factors = low_rank.factors()
    assert (factors.in_features, factors.out_features) == (24, 16)
    assert factors.up.weight.data_ptr() == low_rank.up.data_ptr()
    assert factors.down.weight.data_ptr() == low_rank.down.data_ptr()
    x = torch.randn(3, 7, 24)
    expected = x @ low_rank.matrix().t() + (low_rank.bias if bias else 0)
    torch.testing.assert_close(factors(x), expected, rtol=1e-5, atol=1e-5)
    names = {"down.weight", "up.weight"} | ({"up.bias"} if bias else set())
    assert {name for name, _ in factors.named_parameters()} == names


def test_only_operators_are_separated_and_all_matrices_rounded():
    subblock = nn.ModuleDict({"up": LowRankLinear(8, 6, 2), "act": nn.SiLU(), "down": nn.Linear(6, 8)})
    separate_factors(subblock)
    assert [type(module) for module in subblock.values()] == [Factors, nn.SiLU, nn.Linear]
    set_precision(subblock, "int8")
    rounded = {name for name, module in subblock.named_modules() if isinstance(module, Int8Linear)}
    assert rounded == {"up.down", "up.up", "down"}


def test_an_operator_without_dense_factors_has_none():
    with pytest.raises(NotImplementedError, match="MonarchLinear is no product of dense matrices"):
        MonarchLinear(16, 16).factors()
