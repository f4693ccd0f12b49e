"""The NTK study: kernels and descents compared with automatic differentiation, and predicted rates."""

import math

import numpy as np
import pytest
import torch

from tangram.report.document import Figure
from tangram_studies.data.fashion_mnist import Images
from tangram_studies.papers import ntk
from tangram_studies.papers.ntk import convergence, cost, kernels
from tangram_studies.papers.ntk.convergence import descend
from tangram_studies.papers.ntk.network import (
    ARMS,
    DENSE,
    U_FIXED,
    V_FIXED,
    Scale,
    TwoLayer,
    limit_kernel,
    unit_points,
)
from tangram_studies.study import Study


def net_of(arm, d=6, m=40, k=4, seed=0):
    return TwoLayer(d, m, None if arm == DENSE else k, arm, seed)


def function_of(net):
    """Return f as an explicit function of the trained factor."""

    def f(trained, x):
        factorized = {V_FIXED: lambda: trained @ net.down, U_FIXED: lambda: net.up @ trained}
        weights = factorized.get(net.fixed, lambda: trained)()
        return (x @ weights.T).relu() @ net.signs / math.sqrt(net.m)

    return f


@pytest.mark.parametrize("arm", ARMS)
def test_kernel_is_that_of_the_jacobians(arm):
    net, x, other = net_of(arm), unit_points(5, 6, 1), unit_points(3, 6, 2)
    f = function_of(net)
    torch.testing.assert_close(net(x), f(net.trained, x))
    left, right = (torch.func.jacrev(f)(net.trained, points).flatten(1) for points in (x, other))
    torch.testing.assert_close(net.kernel(x, other), left @ right.T, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net.kernel(x), left @ left.T, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arm", ARMS)
def test_a_step_follows_the_gradient(arm):
    net, x, y = net_of(arm), unit_points(5, 6, 1), torch.ones(5)
    before, f = net.trained, function_of(net)
    gradient = torch.func.grad(lambda trained: 0.5 * (f(trained, x) - y).square().sum())(before)
    loss = net.step(x, y, 0.1)
    assert loss == pytest.approx(float((f(before, x) - y).square().sum()), rel=1e-5)
    torch.testing.assert_close(net.trained, before - 0.1 * gradient, atol=1e-5, rtol=1e-4)


def test_only_the_trained_factor_moves_and_costs_are_counted():
    for arm, trainable in ((V_FIXED, 40 * 4), (U_FIXED, 4 * 6)):
        net = net_of(arm)
        fixed = net.down.clone() if arm == V_FIXED else net.up.clone()
        net.step(unit_points(5, 6, 1), torch.ones(5), 0.1)
        assert torch.equal(net.down if arm == V_FIXED else net.up, fixed)
        assert (net.trainable, net.macs) == (trainable, 4 * (40 + 6))
    assert (net_of(DENSE).trainable, net_of(DENSE).macs) == (240, 240)


def test_wide_kernels_come_near_to_the_limit():
    x = unit_points(6, 8, 0)
    limit = limit_kernel(x)
    for arm, k in ((DENSE, None), (V_FIXED, 512), (U_FIXED, 512)):
        off = [(TwoLayer(8, 4000, k, arm, seed).kernel(x) - limit).abs().max() for seed in range(3)]
        assert max(off) < 0.1, arm
    narrow = (TwoLayer(8, 4000, 4, V_FIXED, 0).kernel(x) - limit).abs().max()
    assert narrow > 0.1


@pytest.mark.parametrize(("arm", "k"), [(DENSE, 0), (V_FIXED, 30), (U_FIXED, 30)])
def test_descent_is_linear_at_the_kernels_rate(arm, k):
    """The slowest mode falls by ``2 log(1 − η λ_min)`` per step; with U fixed the final kernel predicts it."""
    x = unit_points(20, 20, 0)
    y = torch.randint(0, 2, (20,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    found, losses = descend(TwoLayer(20, 2048, k or None, arm, 0), x, y, 150)
    assert losses[-1] < 0.01 * losses[0]
    assert found.rate == pytest.approx(found.predicted_last, rel=0.3)
    if arm != U_FIXED:
        assert found.rate == pytest.approx(found.predicted_first, rel=0.3)
        assert found.drift < 0.2


def test_the_study_runs_at_a_tiny_size(monkeypatch):
    random = np.random.default_rng(0)

    def pictures(count):
        return random.integers(0, 256, (count, 28, 28), dtype=np.uint8), random.choice([2, 4], count).astype(np.uint8)

    images = Images(*pictures(40), *pictures(20))
    for module in (kernels, convergence, cost):
        monkeypatch.setattr(module, "lines_figure", lambda name, *_, **__: Figure("<svg/>", name))
    study = ntk.reproduce(images, Scale(12, 64, (32, 64), (2, 4, 8), 20, 30, 20, 32), 2)
    names = [claim.claim.split()[0] for claim in study.claims]
    assert names == ["12a", "12b", "12c", "13a", "13b", "13c", "13d", "14a", "14b", "14c", "14d"]
    assert len(study.figures) == 5


def test_equal_seeds_give_equal_measurements(monkeypatch):
    scale = Scale(12, 64, (32, 64), (2, 4), 10, 30, 20, 32)
    monkeypatch.setattr(convergence, "lines_figure", lambda *_, **__: None)
    found = []
    for _ in range(2):
        study = Study("ntk", "t", "0")
        convergence.descents(study, range(2), scale)
        found.append(study.measurements)
    assert found[0] == found[1]
