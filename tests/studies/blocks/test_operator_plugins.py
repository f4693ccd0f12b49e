"""Structured operators against explicit matrices, SciPy's Hadamard matrix, and counts by enumeration."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard
from torch.utils.flop_counter import FlopCounterMode

from tangram.models.operators import LowRankLinear, StructuredLinear, structured_linear
from tangram_studies.blocks.hybrid import LowRankPlusButterfly
from tangram_studies.blocks.operators import (
    ButterflyFactor,
    ButterflyLinear,
    MonarchLinear,
    NTKFactorLinear,
    fuse,
    primes_of,
    smooth,
    split,
)

OPTIONS = {"init": ["fjlt", "ortho", "identity"], "truncation": ["random", "stratified"], "free": [False, True]}


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 2)
    return module


def explicit(factor: ButterflyFactor) -> np.ndarray:
    """Return J by nested loops over its definition."""
    product = np.eye(factor.size)
    lower = 1
    for stage, radix in zip(factor.stages, factor.radices, strict=True):
        weights, matrix = stage.detach().numpy(), np.zeros((factor.size, factor.size))
        for higher, low, out, inner in itertools.product(*map(range, stage.shape)):
            base = higher * radix * lower + low
            matrix[base + out * lower, base + inner * lower] = weights[higher, low, out, inner]
        product = matrix @ product
        lower *= radix
    return product[factor.rows][:, : factor.features]


OPERATORS = {
    "butterfly": lambda: ButterflyLinear(24, 36, 8, 9),
    "butterfly-random": lambda: ButterflyLinear(24, 36, 7, 5, truncation="random"),
    "butterfly-free": lambda: ButterflyLinear(24, 36, 12, 12, free=True),
    "butterfly-padded": lambda: ButterflyLinear(24, 36, 5, 11, padding="power-of-2"),
    "butterfly-whole": lambda: ButterflyLinear(24, 36, 24, 36),
    "butterfly-prime": lambda: ButterflyLinear(13, 7, 4, 3),
    "hybrid": lambda: LowRankPlusButterfly(24, 36, 3, 8, 9),
    "monarch": lambda: MonarchLinear(24, 36),
    "lowrank": lambda: LowRankLinear(24, 36, 5),
    "ntk-v": lambda: NTKFactorLinear(24, 36, 5, fixed="V"),
    "ntk-u": lambda: NTKFactorLinear(24, 36, 5, fixed="U", sketch="fjlt"),
}


@pytest.mark.parametrize("n", [1, 7, 30, 64, 576, 784, 14336])
def test_factors_of_sizes(n):
    assert math.prod(primes_of(n)) == n
    first, last = split(n)
    assert first * last == n
    assert all(abs(math.log(first / last)) <= abs(math.log(d * d / n)) + 1e-12 for d in range(1, n + 1) if n % d == 0)


def test_padding_only_where_a_prime_is_large():
    assert [smooth(n) for n in (576, 1536, 14336, 30, 11, 13)] == [576, 1536, 14336, 30, 12, 14]


@settings(max_examples=40, deadline=None)
@given(
    n=st.sampled_from([2, 6, 8, 12, 13, 24, 30, 32]),
    share=st.floats(0.01, 1.0),
    init=st.sampled_from(OPTIONS["init"]),
    truncation=st.sampled_from(OPTIONS["truncation"]),
    free=st.booleans(),
    padding=st.sampled_from(["smooth", "power-of-2"]),
    seed=st.integers(0, 99),
)
def test_factor_is_the_product_of_its_stages(n, share, init, truncation, free, padding, seed):
    keep = max(1, round(share * n))
    factor = ButterflyFactor(n, keep, free=free, init=init, truncation=truncation, padding=padding, seed=seed)
    initial = factor.matrix().detach().double()
    if factor.size == n:
        torch.testing.assert_close(initial @ initial.T, torch.eye(keep, dtype=torch.float64), atol=1e-5, rtol=0)
    expected = explicit(randomize(factor, seed))
    np.testing.assert_allclose(factor.matrix().detach().numpy(), expected, atol=1e-4, rtol=1e-4)
    x = torch.randn(3, n)
    np.testing.assert_allclose(factor(x).detach().numpy(), x.numpy() @ expected.T, atol=1e-3, rtol=1e-3)
    blocks = factor.blocks()
    token = factor.apply_token_major(factor.pad(x), *blocks)
    back = factor.transpose_token_major(token, *blocks)[:, :n]
    np.testing.assert_allclose(back.detach().numpy(), x.numpy() @ expected.T @ expected, atol=1e-2, rtol=1e-2)
    columns = factor.transpose_feature_major(token.t().contiguous(), *blocks)[:n]
    torch.testing.assert_close(columns.t(), back, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("n", [8, 64, 256])
def test_the_initial_transform_is_a_hadamard_with_random_signs(n):
    found = ButterflyFactor(n, scale=math.sqrt(n)).matrix().detach().numpy()
    signs = found[0]
    np.testing.assert_allclose(np.abs(signs), 1, rtol=1e-5)
    np.testing.assert_allclose(found * signs, hadamard(n), atol=1e-4)


def test_johnson_lindenstrauss_scale_keeps_lengths_on_average():
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    x = x / x.norm()
    lengths = [
        ButterflyFactor(64, 16, truncation="random", scale=2.0, seed=seed)(x).square().sum().item()
        for seed in range(300)
    ]
    assert abs(np.mean(lengths) - 1) < 4 * np.std(lengths) / math.sqrt(len(lengths))
    assert np.std(lengths) > 0.05


def test_rows_are_random_and_stratified_ones_spread_evenly():
    counts = np.zeros(24)
    for seed in range(200):
        counts[ButterflyFactor(24, 6, truncation="random", seed=seed).rows] += 1
    assert counts.min() > 25  # 50 expected, 6 standard deviations away
    factor = ButterflyFactor(24, 12)
    assert factor.per_block == 12 // factor.first
    assert set(np.bincount(np.array(factor.rows) % factor.first)) == {factor.per_block}


def test_fusing_is_the_product():
    low, high = torch.randn(6, 1, 4, 4), torch.randn(2, 4, 3, 3)
    x = torch.randn(24)
    y = torch.einsum("hij,hj->hi", low[:, 0], x.view(6, 4)).view(2, 3, 4)
    expected = torch.einsum("hlij,hjl->hil", high, y).flatten()
    fused = fuse(low, high)
    torch.testing.assert_close(torch.einsum("hij,hj->hi", fused[:, 0], x.view(2, 12)).flatten(), expected)


@pytest.mark.parametrize(
    ("n", "keep", "padding"), [(32, 5, "power-of-2"), (24, 6, "smooth"), (24, 10, "power-of-2"), (30, 30, "smooth")]
)
@pytest.mark.parametrize("truncation", ["random", "stratified"])
def test_effective_weights_are_those_that_move_the_matrix(n, keep, padding, truncation):
    """By enumeration: a weight counts if the gradient of a random function of J is not zero there."""
    factor = randomize(ButterflyFactor(n, keep, padding=padding, truncation=truncation))
    (factor.matrix() * torch.rand(keep, n)).sum().backward()
    assert factor.effective_weights() == sum(int((stage.grad != 0).sum()) for stage in factor.stages)


@pytest.mark.parametrize(("p", "keep"), [(8, 1), (8, 8), (8, 100), (10, 10), (10, 32), (10, 512), (10, 1024)])
def test_effective_weights_obey_the_papers_bound(p, keep):
    """2007.08864, appendix F: at most 2 n log2(keep) + 6 n."""
    n = 2**p
    for seed in range(5):
        count = ButterflyFactor(n, keep, truncation="random", seed=seed).effective_weights()
        assert count <= 2 * n * math.log2(keep) + 6 * n
    if keep == n:
        assert count == 2 * n * p


@pytest.mark.parametrize("name", OPERATORS)
def test_all_forms_are_equal_and_counts_are_exact(name):
    operator: StructuredLinear = randomize(OPERATORS[name]())
    x = torch.randn(5, operator.in_features)
    expected = x.double() @ operator.matrix().detach().double().T
    with torch.no_grad():
        for form in operator.kernels:
            tensors = operator.tensors(form)
            with FlopCounterMode(display=False) as counter:
                found = operator.compute(form, x, *tensors)
            torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-3)
            assert counter.get_total_flops() == 2 * len(x) * operator.macs(form)
            if form != operator.trained:
                assert operator.bytes(form) == sum(4 * tensor.numel() for tensor in tensors)
    assert operator.bytes() == 4 * sum(t.numel() for t in (*operator.parameters(), *operator.buffers()))
    assert operator.macs() == operator.macs(operator.trained)
    operator.requires_grad_(True)
    (operator.matrix() * torch.rand(operator.out_features, operator.in_features)).sum().backward()
    moved = sum(int((p.grad != 0).sum()) for p in operator.parameters())
    assert operator.effective_weights() == moved + sum(buffer.numel() for buffer in operator.buffers())


@pytest.mark.parametrize("name", OPERATORS)
def test_lowered_inference_equals_training_after_each_change(name):
    operator = randomize(OPERATORS[name]())
    operator.bias = torch.nn.Parameter(torch.randn(operator.out_features))
    x = torch.randn(2, 3, operator.in_features)
    for _ in range(2):
        trained = operator(x)
        assert trained.requires_grad
        with torch.no_grad():
            torch.testing.assert_close(operator(x), trained, atol=1e-4, rtol=1e-4)
            expected = x @ operator.matrix().T + operator.bias
            torch.testing.assert_close(operator(x), expected, atol=1e-4, rtol=1e-4)
        with torch.inference_mode():
            torch.testing.assert_close(operator(x), trained, atol=1e-4, rtol=1e-4)
        optimizer = torch.optim.AdamW(operator.parameters(), lr=0.1, fused=True)  # a cached form is now stale
        trained.sum().backward()
        optimizer.step()
        with torch.no_grad():
            torch.testing.assert_close(operator(x), x @ operator.matrix().T + operator.bias, atol=1e-4, rtol=1e-4)
            for parameter in operator.parameters():
                parameter.mul_(1.1)
            torch.testing.assert_close(operator(x), x @ operator.matrix().T + operator.bias, atol=1e-4, rtol=1e-4)


def test_lowering_picks_the_cheapest_row_of_the_table(monkeypatch):
    import tangram.models.operators as module

    operator = ButterflyLinear(24, 36, 8, 9)
    kernels = ("dense", "feature", "token")
    for best in kernels:
        table = {kernel: [(1, 1e-6 if kernel == best else 1e-3, 1e9)] for kernel in kernels}
        monkeypatch.setattr(module, "MEASURED", {"cpu": table})
        form = operator.lower(4, "cpu")
        assert operator.kernels[form] == best
        others = [operator.seconds(other, 4, "cpu") for other in operator.kernels]
        assert operator.seconds(form, 4, "cpu") == min(others)
    assert operator.lower(4, "cuda") == "pair"  # unmeasured: dense kernels, fewest multiply-adds
    assert ButterflyLinear(24, 36, 24, 36).lower(4, "cuda") == "dense"


def test_only_one_factor_of_an_ntk_layer_is_trained():
    for fixed, trained in (("V", "up"), ("U", "down")):
        operator = NTKFactorLinear(24, 36, 5, fixed=fixed)
        assert [name for name, _ in operator.named_parameters()] == [trained]
        same = NTKFactorLinear(24, 36, 5, fixed=fixed)
        assert all(torch.equal(a, b) for a, b in zip(operator.buffers(), same.buffers(), strict=True))
    columns = NTKFactorLinear(64, 48, 6, fixed="U", sketch="fjlt").up
    torch.testing.assert_close(columns.T @ columns, torch.eye(6) * 48 / 6, atol=1e-4, rtol=1e-4)


def test_random_projection_has_unit_scale():
    down = NTKFactorLinear(500, 10, 100, fixed="V").down
    x = torch.randn(500, 50, generator=torch.Generator().manual_seed(0))
    ratio = ((down @ x).square().sum(0) / x.square().sum(0)).mean()
    assert ratio == pytest.approx(1, abs=0.05)


def test_a_matrix_is_replaced_only_where_that_makes_it_smaller():
    assert isinstance(structured_linear("lowrank-4", 32, 32, False), LowRankLinear)
    assert structured_linear("lowrank-16", 32, 32, False) is None  # as many weights as the matrix
    assert structured_linear("ntk-64", 32, 32, False) is None
    assert isinstance(structured_linear("monarch", 32, 48, True), MonarchLinear)
    wide = structured_linear("butterfly-64", 256, 48, False)
    assert isinstance(wide, ButterflyLinear)
    assert (wide.j1.keep, wide.j2.keep) == (64, 48)


@pytest.mark.parametrize("keep", [0, 25])
def test_impossible_truncations_are_refused(keep):
    with pytest.raises(ValueError, match="keeps 1 to 24 rows"):
        ButterflyFactor(24, keep)


def test_operators_are_built_alike_on_the_meta_device():
    for build in OPERATORS.values():
        real = build()
        with torch.device("meta"):
            shapes = {name: t.shape for name, t in build().state_dict().items()}
        assert shapes == {name: t.shape for name, t in real.state_dict().items()}
    assert functools.reduce(lambda a, b: a * b, ButterflyFactor(576, 144).radices) == 576
