"""Approximation of dense by structured matrices: optimality, and recovery of planted structure."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangram.models.operators import LowRankLinear
from tangram_studies.blocks.fitting import RotatedFactor, from_dense, learn_factors, relative_error, unfuse
from tangram_studies.blocks.hybrid import LowRankPlusButterfly
from tangram_studies.blocks.operators import (
    ButterflyFactor,
    ButterflyLinear,
    MonarchLinear,
    NTKFactorLinear,
    fuse,
)

N, M = 24, 30


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(M, N, generator=generator)
    inputs = torch.randn(200, N, generator=generator) * torch.logspace(0, -2, N)
    moment = (inputs.T @ inputs / len(inputs)).double() + 1e-6 * torch.eye(N, dtype=torch.float64)
    return weight, moment


def fitted(operator, weight, moment, **options):
    from_dense(operator, weight, moment, **options)
    return operator.matrix().detach()


@pytest.mark.parametrize("aware", [False, True])
def test_low_rank_is_the_svd_in_the_metric_of_the_activations(aware):
    weight, moment = problem()
    metric = np.linalg.cholesky(moment.numpy()) if aware else np.eye(N)
    singular = np.linalg.svd(weight.numpy() @ metric, compute_uv=False)
    found = fitted(LowRankLinear(N, M, 5), weight, moment if aware else None)
    expected = np.sqrt((singular[5:] ** 2).sum() / (singular**2).sum())
    assert relative_error(weight, found, moment if aware else None) == pytest.approx(expected, rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), name=st.sampled_from(["ntk-v", "ntk-u", "butterfly", "butterfly-random"]))
def test_moving_a_trained_weight_does_not_improve_least_squares(seed, name):
    """The gradient of the activations' error is zero for the weights that a closed form solves for."""
    weight, moment = problem(seed)
    operator = {
        "ntk-v": lambda: NTKFactorLinear(N, M, 6, fixed="V", seed=seed),
        "ntk-u": lambda: NTKFactorLinear(N, M, 6, fixed="U", seed=seed),
        "butterfly": lambda: ButterflyLinear(N, M, 6, 6, seed=seed),
        "butterfly-random": lambda: ButterflyLinear(N, M, 7, 5, truncation="random", init="ortho", seed=seed),
    }[name]()
    from_dense(operator, weight, moment)
    operator.double()
    off = weight.double() - operator.matrix()
    (off @ moment * off).sum().backward()
    solved = operator.core if name.startswith("butterfly") else next(operator.parameters())
    scale = (weight.double() @ moment * weight.double()).sum()
    assert solved.grad.abs().max() < 1e-4 * scale


@pytest.mark.parametrize("operator", [LowRankLinear(N, M, N), ButterflyLinear(N, M, N, M)])
def test_full_rank_operators_lose_nothing(operator):
    weight, moment = problem()
    assert relative_error(weight, fitted(operator, weight, moment)) < 1e-5


def test_random_rows_keep_the_share_of_energy_that_theory_says():
    """Without learning, the relative error is sqrt(1 - k_in k_out / (n m)) in expectation."""
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    errors = [relative_error(weight, fitted(ButterflyLinear(64, 64, 16, 16, seed=s), weight, None)) for s in range(20)]
    assert np.mean(np.square(errors)) == pytest.approx(1 - 1 / 16, abs=0.005)


def test_monarch_finds_a_planted_one_and_beats_perturbations():
    torch.manual_seed(0)
    true = MonarchLinear(24, 36)
    assert relative_error(true.matrix(), fitted(MonarchLinear(24, 36), true.matrix().detach(), None)) < 1e-6
    weight = torch.randn(36, 24)
    operator = MonarchLinear(24, 36)
    best = relative_error(weight, fitted(operator, weight, None))
    for _ in range(20):
        with torch.no_grad():
            moved = [p + 0.01 * torch.randn_like(p) for p in operator.parameters()]
            changed = MonarchLinear(24, 36)
            for parameter, value in zip(changed.parameters(), moved, strict=True):
                parameter.copy_(value)
            assert relative_error(weight, changed.matrix()) > best


def test_monarch_weighs_inputs_by_their_size():
    weight, moment = problem()
    weight = torch.randn(36, 24, generator=torch.Generator().manual_seed(3))
    moment = torch.diag(moment.diagonal())
    aware = fitted(MonarchLinear(24, 36), weight, moment)
    blind = fitted(MonarchLinear(24, 36), weight, None)
    assert relative_error(weight, aware, moment) < relative_error(weight, blind, moment)
    assert relative_error(weight, aware) > relative_error(weight, blind)


@pytest.mark.parametrize("n", [16, 24, 96])
@pytest.mark.parametrize("free", [False, True])
def test_a_planted_butterfly_is_found_again(n, free):
    torch.manual_seed(n)
    true = ButterflyFactor(n, free=free)
    for stage in true.stages:
        torch.nn.init.normal_(stage)
    found = ButterflyFactor(n, free=free)
    from_dense(found, true.matrix().detach())
    assert relative_error(true.matrix(), found.matrix()) < 1e-5
    other = torch.randn(n, n)
    from_dense(found, other)
    assert relative_error(other, found.matrix()) > 0.3  # a random matrix is not a butterfly


def test_a_truncated_factor_has_no_closed_form():
    with pytest.raises(TypeError, match="keeps all of its rows"):
        from_dense(ButterflyFactor(16, 4), torch.randn(4, 16))
    with pytest.raises(TypeError, match="no closed form for Linear"):
        from_dense(torch.nn.Linear(2, 2), torch.randn(2, 2))


def test_splitting_a_stage_undoes_fusing():
    low, high = torch.randn(6, 2, 4, 4), torch.randn(2, 8, 3, 3)
    again = unfuse(fuse(low, high), 4)
    torch.testing.assert_close(fuse(*again), fuse(low, high), atol=1e-4, rtol=1e-4)


def test_a_turned_factor_begins_equal_and_stays_orthonormal():
    factor = ButterflyFactor(30, 6)
    rotated = RotatedFactor(factor)
    torch.testing.assert_close(rotated.matrix(), factor.matrix())
    with torch.no_grad():
        for angles in rotated.angles:
            angles.normal_()
    turned = rotated.matrix().detach()
    assert (turned - factor.matrix()).norm() > 0.5
    torch.testing.assert_close(turned @ turned.T, torch.eye(6), atol=1e-5, rtol=0)
    rotated.write()
    torch.testing.assert_close(factor.matrix(), turned)


def test_a_gadget_for_the_residual_of_low_rank_only_helps():
    weight, moment = problem()
    low = relative_error(weight, fitted(LowRankLinear(N, M, 4), weight, moment), moment)
    hybrid = LowRankPlusButterfly(N, M, 4, 8, 6)
    assert relative_error(weight, fitted(hybrid, weight, moment, steps=20), moment) < 0.95 * low
    assert relative_error(weight, hybrid.low_rank.matrix(), moment) == pytest.approx(low, rel=1e-4)


@pytest.mark.parametrize("aware", [False, True])
def test_learned_angles_find_a_planted_gadget_from_nearby(aware):
    """Positive control: from angles perturbed by 0.15, learning recovers a gadget without error."""
    true = ButterflyLinear(32, 32, 8, 8, init="ortho", seed=1)
    weight = true.matrix().detach()
    moment = torch.diag(torch.logspace(0, -1, 32)).double() if aware else None
    start = ButterflyLinear(32, 32, 8, 8, init="ortho", seed=1)
    generator = torch.Generator().manual_seed(2)
    for factor in (start.j1, start.j2):
        rotated = RotatedFactor(factor)
        with torch.no_grad():
            for angles in rotated.angles:
                angles.copy_(0.15 * torch.randn(angles.shape, generator=generator))
        rotated.write()
    before = relative_error(weight, fitted(start, weight, moment), moment)
    errors = learn_factors(start, weight, moment, 80)
    after = relative_error(weight, fitted(start, weight, moment), moment)
    assert before > 0.6
    assert after < 0.05
    assert errors[0] == pytest.approx(before**2, rel=1e-3)
    j1 = start.j1.matrix().detach()
    torch.testing.assert_close(j1 @ j1.T, torch.eye(8), atol=1e-4, rtol=0)  # still orthonormal


def test_learning_beats_random_factors_but_not_the_svd():
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.logspace(0, -2, 32))
    random = relative_error(weight, fitted(ButterflyLinear(32, 32, 8, 8), weight, None))
    learned = relative_error(weight, fitted(ButterflyLinear(32, 32, 8, 8), weight, None, steps=40))
    svd = relative_error(weight, fitted(LowRankLinear(32, 32, 8), weight, None))
    assert svd < learned < 0.8 * random
