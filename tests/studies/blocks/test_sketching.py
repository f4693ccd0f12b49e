"""Sketches and encoder-decoder butterflies: theorem 1 of 2007.08864 at minima and saddles, and exact baselines."""

import itertools
import math

import numpy as np
import pytest
import torch

from tangram_studies.blocks.operators import ButterflyFactor
from tangram_studies.blocks.sketching import (
    EncoderDecoderButterfly,
    LearnedSketch,
    compressed,
    descend,
    optimal_loss,
    sigma,
    sketch_loss,
    sketch_size,
    two_phase_fit,
)

N, L, K, M, D = 16, 6, 2, 10, 20


def problem(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(rows, D, generator=generator, dtype=dtype) for rows in (N, M))
    sketch = ButterflyFactor(N, L, truncation="random", seed=seed).matrix().detach().to(dtype)
    return x, y, sketch


def brute_force(sketch, x, k):
    """Return B_k(X) by its definition: project onto the row space of BX, then truncate the SVD."""
    basis = np.linalg.qr((sketch @ x).numpy().T)[0]
    u, s, v = np.linalg.svd(x.numpy() @ basis, full_matrices=False)
    return np.square(x.numpy() - u[:, :k] * s[:k] @ v[:k] @ basis.T).sum()


@pytest.mark.parametrize("k", [1, 3, L])
def test_sketch_loss_is_that_of_the_definition(k):
    x, _, sketch = problem()
    assert sketch_loss(sketch, x, k).item() == pytest.approx(brute_force(sketch, x, k), rel=1e-6)
    both = sketch_loss(sketch, torch.stack([x, 2 * x]), k)
    torch.testing.assert_close(both[1], 4 * both[0])
    assert sketch_loss(sketch, x, k) >= optimal_loss(x, k) - 1e-9


def test_an_empty_or_doubled_row_adds_nothing():
    x, _, sketch = problem()
    more = torch.cat([sketch, sketch[:1], torch.zeros_like(sketch[:1])]).requires_grad_(True)
    loss = sketch_loss(more, x, K)
    assert loss.item() == pytest.approx(sketch_loss(sketch, x, K).item(), rel=1e-6)
    loss.backward()
    assert more.grad.isfinite().all()


def test_sketch_loss_has_the_right_gradient():
    x, _, sketch = problem()
    assert torch.autograd.gradcheck(lambda b: sketch_loss(b, x, K), sketch.requires_grad_(True))


def test_optimal_loss_is_pca_and_compression_keeps_it():
    x, _, sketch = problem()
    wide = torch.cat([x, x[:, :3] @ torch.randn(3, 50, dtype=x.dtype)], dim=1)
    narrow = compressed(wide)
    assert narrow.shape[1] <= N
    torch.testing.assert_close(narrow @ narrow.T, wide @ wide.T)
    for k in (1, 4):
        torch.testing.assert_close(optimal_loss(narrow, k), optimal_loss(wide, k))
        torch.testing.assert_close(sketch_loss(sketch, narrow, k), sketch_loss(sketch, wide, k))


def critical_point(x, y, sketch, chosen):
    """Return D and E whose outputs project the regression onto the chosen eigenvectors of Σ(B)."""
    sketched = sketch @ x
    vectors = torch.linalg.eigh(sigma(sketched, y))[1].flip(1)[:, list(chosen)]
    encoder = vectors.T @ y @ sketched.T @ torch.linalg.inv(sketched @ sketched.T)
    return vectors, encoder


@pytest.mark.parametrize("seed", range(3))
def test_theorem_1_at_every_critical_point(seed):
    """The loss is ``tr(YYᵀ) − Σ λ_i`` over the chosen eigenvalues, and only the first k make a minimum."""
    x, y, sketch = problem(seed)
    eigenvalues = torch.linalg.eigvalsh(sigma(sketch @ x, y)).flip(0)[:L]

    def loss(flat):
        decoder, encoder = flat[: M * K].view(M, K), flat[M * K :].view(K, L)
        return (decoder @ encoder @ sketch @ x - y).square().sum()

    for chosen in itertools.combinations(range(L), K):
        flat = torch.cat([part.flatten() for part in critical_point(x, y, sketch, chosen)]).requires_grad_(True)
        value = loss(flat)
        (gradient,) = torch.autograd.grad(value, flat)
        expected = (y * y).sum() - eigenvalues[list(chosen)].sum()
        assert value.item() == pytest.approx(expected.item(), rel=1e-10)
        assert gradient.abs().max() < 1e-9 * value
        curvature = torch.linalg.eigvalsh(torch.func.hessian(loss)(flat.detach()))[0]
        assert (curvature > -1e-8 * value) == (chosen == tuple(range(K)))


def test_with_a_fixed_butterfly_descent_finds_the_global_minimum():
    x, y, sketch = problem()
    eigenvalues = torch.linalg.eigvalsh(sigma(sketch @ x, y)).flip(0)
    expected = ((y * y).sum() - eigenvalues[:K].sum()).item()
    model = EncoderDecoderButterfly(N, L, K, M, seed=7).double()
    model.butterfly = torch.nn.Linear(N, L, bias=False).requires_grad_(False)
    model.butterfly.weight = torch.nn.Parameter(sketch, requires_grad=False)
    curve = descend(model, lambda: model.loss(x, y), 400, 0.03)
    assert min(curve) == pytest.approx(expected, rel=1e-4)
    assert curve[0] > 1.05 * expected


def test_phase_one_is_the_minimum_and_phase_two_only_improves():
    x, y, _ = problem(dtype=torch.float32)
    model = EncoderDecoderButterfly(N, L, K, M)
    sketched = model.butterfly.matrix().detach().double() @ x.double()
    eigenvalues = torch.linalg.eigvalsh(sigma(sketched, y.double())).flip(0)
    expected = ((y * y).sum() - eigenvalues[:K].sum()).item()
    first, curve = two_phase_fit(model, x, y, steps=100, rate=0.01)
    assert first == pytest.approx(expected, rel=1e-5)
    assert model.loss(x, y).item() == pytest.approx(min(curve), rel=1e-5)
    assert min(curve) < 0.98 * first


def test_phase_one_on_the_matrix_itself_is_the_sketch_loss():
    x, _, _ = problem(dtype=torch.float32)
    model = EncoderDecoderButterfly(N, L, K, N)
    model.solve(x, x)
    expected = sketch_loss(model.butterfly.matrix().double(), x.double(), K)
    assert model.loss(x, x).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_guarantee_of_a_random_sketch():
    """Proposition 2: with probability 1/2 at least, ``‖X − J_k(X)‖² ≤ (1 + ε) Δ_k`` for ``l = k log k + k/ε``."""
    x = (
        torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
        * torch.arange(1, 65) ** -0.5
    )
    good = {}
    for k, epsilon in itertools.product((2, 6), (0.25, 1.0)):
        l = sketch_size(k, epsilon, 64)  # noqa: E741
        draws = [ButterflyFactor(64, l, truncation="random", seed=seed).matrix().detach() for seed in range(12)]
        ratios = [(sketch_loss(draw, x, k) / optimal_loss(x, k)).item() for draw in draws]
        assert min(ratios) > 1
        good[k, epsilon] = np.mean([ratio <= 1 + epsilon for ratio in ratios])
    assert min(good.values()) >= 0.5


def test_sketch_sizes():
    assert sketch_size(1, 1.0, 64) == 1
    assert sketch_size(4, 0.5, 64) == math.ceil(4 * math.log(4) + 8)
    assert sketch_size(30, 0.1, 64) == 64


@pytest.mark.parametrize(("pattern", "nonzeros"), [("butterfly", 1), ("sparse", 1), ("sparse", 3), ("dense", 1)])
def test_learned_sketches_keep_their_pattern_and_improve(pattern, nonzeros):
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(N, 5, generator=generator)
    x = shared @ torch.randn(30, 5, 12, generator=generator) + 0.1 * torch.randn(30, N, 12, generator=generator)
    sketch = LearnedSketch(N, 4, pattern, nonzeros)
    if pattern == "sparse":
        assert ((sketch.matrix() != 0).sum(0) == nonzeros).all()
    before = sketch_loss(sketch.matrix(), x, 2).mean().item()
    sketch.fit(x, 2, steps=60, rate=0.02, batch=30)
    after = sketch_loss(sketch.matrix(), x, 2).mean().item()
    assert after < 0.9 * before
    torch.testing.assert_close(sketch(x), sketch.matrix() @ x)
    if pattern == "sparse":
        assert ((sketch.matrix() != 0).sum(0) <= nonzeros).all()
