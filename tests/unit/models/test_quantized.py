"""Linear layers in bf16, int8 and fp8 against float64 and torch's own products, within the bounds of their rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tangram.library.rounding import Statistics, round_to_nearest, smoothing
from tangram.models.quantized import (
    LARGEST,
    ZERO_POINT,
    BFloat16Linear,
    Fp8Linear,
    Int8Linear,
    _padded,
    round_tokens,
    set_precision,
    with_precision,
)


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def int8_layer(weight: torch.Tensor, smooth: torch.Tensor | None = None, bias: bool = False) -> Int8Linear:
    """Return a layer that holds a float matrix, rounded to nearest."""
    layer = Int8Linear(weight.shape[1], weight.shape[0], bias)
    smooth = torch.ones(weight.shape[1]) if smooth is None else smooth
    rounded, scale = round_to_nearest(weight / smooth)
    state = {"weight": rounded, "scale": scale, "smooth": smooth}
    layer.load_state_dict(state | ({"bias": seeded(len(weight), seed=9)} if bias else {}))
    return layer.requires_grad_(False)


def steps(layer: Int8Linear, x: torch.Tensor) -> torch.Tensor:
    """Return the product of a token's and a row's step, ``(tokens, out)``, float64."""
    return round_tokens(x * layer.smooth)[1].double() / LARGEST * layer.scale.double()


shapes = st.tuples(st.integers(1, 9), st.integers(2, 40), st.integers(1, 24))  # torch._int_mm errs at a width of 1


@settings(max_examples=40, deadline=None)
@given(shape=shapes, seed=st.integers(0, 1000), exponent=st.integers(-20, 20))
def test_int8_errs_by_half_a_step_of_inputs_and_weights(shape, seed, exponent):
    """With x = a (q + e) and w = s (Q + d), |e| and |d| <= 1/2, the error is a s (Q·e + d·q + d·e)."""
    tokens, width, rows = shape
    x, weight = seeded(tokens, width, seed=seed) * 2.0**exponent, seeded(rows, width, seed=seed + 1)
    layer = int8_layer(weight, smooth=seeded(width, seed=seed + 2).abs() + 0.1)
    y, step = layer(x).double(), steps(layer, x)
    q = (round_tokens(x * layer.smooth)[0].double() - ZERO_POINT).abs().sum(1, keepdim=True)
    of_inputs = 0.5 * layer.weight.double().abs().sum(1)
    slack = 1e-5 * step * 127 * 127 * width  # of float32
    stored = x.double() @ layer.matrix().double().t()
    assert ((y - stored).abs() <= step * of_inputs + slack).all()
    true = x.double() @ weight.double().t()
    assert ((y - true).abs() <= step * (of_inputs + 0.5 * q + 0.25 * width) + slack).all()


def test_int8_rounds_both_factors():
    x, weight = seeded(50, 64), seeded(20, 64, seed=1)
    layer = int8_layer(weight)
    errors = [(layer(x) - x @ matrix.t()).norm() / (x @ matrix.t()).norm() for matrix in (layer.matrix(), weight)]
    assert 1e-3 < errors[0] < errors[1] < 2e-2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), exponent=st.integers(-30, 30), token=st.integers(0, 3))
def test_int8_is_invariant_to_the_scale_of_each_token(seed, exponent, token):
    layer = int8_layer(seeded(7, 33, seed=seed))
    x = seeded(4, 33, seed=seed + 1)
    scaled = x.clone()
    scaled[token] *= 2.0**exponent
    expected = layer(x)
    expected[token] *= 2.0**exponent
    assert torch.equal(layer(scaled), expected)
    assert torch.equal(layer(x[token]), layer(x)[token])  # alone as in a batch


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), exponent=st.integers(-30, 30), row=st.integers(0, 6))
def test_int8_is_invariant_to_the_scale_of_each_row(seed, exponent, row):
    weight, x = seeded(7, 33, seed=seed), seeded(4, 33, seed=seed + 1)
    factor = torch.ones(7)
    factor[row] = 2.0**exponent
    assert torch.equal(int8_layer(weight * factor[:, None])(x), int8_layer(weight)(x) * factor)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_token_of_zeros_gives_the_bias(precision, bias):
    layer = int8_layer(seeded(5, 8), bias=bias) if precision == "int8" else BFloat16Linear(8, 5, bias)
    y = layer(torch.cat([torch.zeros(1, 8), seeded(1, 8, seed=3)]))
    expected = layer.bias if bias else torch.zeros(5)
    assert torch.equal(y[0], expected.detach())
    assert (y[1] != y[0]).any()


def test_smoothing_saves_the_channels_beside_an_outlier():
    x, weight = seeded(200, 32), seeded(16, 32, seed=1)
    x[:, 5] *= 1000
    weight[:, 5] /= 1000
    smooth = smoothing(Statistics.of(x), [weight], 0.5)
    plain, smoothed = int8_layer(weight), int8_layer(weight, smooth)
    true = x @ weight.t()
    errors = [(layer(x) - true).norm() / true.norm() for layer in (plain, smoothed)]
    assert errors[0] > 0.3  # the step of each token is as large as its other channels
    assert errors[1] < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_outputs_have_the_shape_and_the_dtype_of_inputs(precision, dtype):
    layer = with_precision(nn.Linear(8, 5), precision)
    y = layer(torch.ones(2, 3, 8, dtype=dtype))
    assert (y.shape, y.dtype) == ((2, 3, 5), dtype)


@pytest.mark.parametrize("bias", [False, True])
def test_bf16_rounds_inputs_weights_and_sums(bias):
    x, layer = seeded(30, 64), BFloat16Linear(64, 20, bias)
    layer.load_state_dict({name: seeded(*t.shape, seed=1).to(t.dtype) for name, t in layer.state_dict().items()})
    assert layer.weight.dtype == torch.bfloat16
    exact = x.bfloat16().double() @ layer.weight.double().t()
    terms = x.abs().double() @ layer.weight.abs().double().t()
    bound = 2.0**-8 * exact.abs() + 1e-5 * terms
    exact = exact if layer.bias is None else exact + layer.bias.double()
    with torch.no_grad():
        assert ((layer(x).double() - exact).abs() <= bound + 1e-6).all()


def test_training_and_inference_in_int8_agree():
    layer, x = int8_layer(seeded(20, 64), seeded(64, seed=2).abs() + 0.5, bias=True), seeded(30, 64, seed=1)
    expected = layer(x)
    trained = layer.requires_grad_(True)(x)
    assert trained.requires_grad
    torch.testing.assert_close(trained.detach(), expected, rtol=1e-5, atol=1e-5)


def test_rounding_in_int8_passes_gradients_on_unchanged():
    layer, x = int8_layer(seeded(20, 64), seeded(64, seed=2).abs() + 0.5, bias=True), seeded(30, 64, seed=1)
    layer.requires_grad_(True)
    x.requires_grad_(True)
    direction = seeded(30, 20, seed=3)
    (layer(x) * direction).sum().backward()
    torch.testing.assert_close(x.grad, direction @ layer.matrix().detach(), rtol=1e-4, atol=1e-4)
    assert torch.equal(layer.bias.grad, direction.sum(0))
    with torch.no_grad():  # the sum is linear in the scales, so a difference of any size is the derivative
        before = (layer(x) * direction).sum(0)
        layer.scale *= 2
        after = (layer(x) * direction).sum(0)
    change = (layer.scale.detach() / 2) * layer.scale.grad
    torch.testing.assert_close(after - before, change, rtol=1e-3, atol=1e-3)
    assert {name for name, _ in layer.named_parameters()} == {"scale", "bias"}  # the integers are not trained


def test_factors_keep_their_bits_when_the_dtype_changes():
    layer = int8_layer(seeded(5, 8), seeded(8, seed=2).abs() + 0.1, bias=True)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    empty = Int8Linear(8, 5, bias=True).to(torch.bfloat16)  # as in scoring: cast, then filled
    empty.load_state_dict(before)
    for changed in (empty, layer.to(torch.bfloat16)):
        for name in ("weight", "scale", "smooth"):
            assert changed.state_dict()[name].dtype == before[name].dtype
            assert torch.equal(changed.state_dict()[name], before[name])
        assert changed.bias.dtype == torch.bfloat16


def test_only_a_subblocks_linear_layers_change():
    subblock = nn.ModuleDict({"up": nn.Linear(4, 6, bias=False), "act": nn.SiLU(), "down": nn.Linear(6, 4)})
    set_precision(subblock, "int8")
    assert [type(module) for module in subblock.values()] == [Int8Linear, nn.SiLU, Int8Linear]
    assert [module.bias is None for module in (subblock["up"], subblock["down"])] == [True, False]
    assert (subblock["down"].in_features, subblock["down"].out_features) == (6, 4)


LARGEST_FP8, SMALLEST_FP8 = 448.0, 2.0**-9  # of e4m3fn: the largest number, and the step of the subnormal ones
EXACT = 2.0**-4  # half a step of 3 mantissa bits, relative


def fp8_layer(weight: torch.Tensor, smooth: torch.Tensor | None = None, bias: bool = False) -> Fp8Linear:
    """Return a layer that holds a float matrix, rounded to nearest."""
    layer = Fp8Linear(weight.shape[1], weight.shape[0], bias)
    smooth = torch.ones(weight.shape[1]) if smooth is None else smooth
    rounded, scale = round_to_nearest(weight / smooth, Fp8Linear)
    state = {"weight": rounded, "scale": scale, "smooth": smooth}
    layer.load_state_dict(state | ({"bias": seeded(len(weight), seed=9)} if bias else {}))
    return layer.requires_grad_(False)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), exponent=st.integers(-12, 12))
def test_rounding_errs_by_half_a_step_and_saturates(seed, exponent):
    x = seeded(200, seed=seed) * 2.0**exponent
    rounded = Fp8Linear.rounded(x)
    assert rounded.dtype == torch.float8_e4m3fn
    bounded = x.clamp(-LARGEST_FP8, LARGEST_FP8)
    error = (rounded.double() - bounded.double()).abs()
    assert (error <= (EXACT * bounded.abs().double()).clamp_min(SMALLEST_FP8 / 2)).all()
    assert torch.equal(Fp8Linear.rounded(rounded.float()), rounded)
    assert Fp8Linear.rounded(torch.tensor([1e9, -1e9])).float().tolist() == [LARGEST_FP8, -LARGEST_FP8]


@settings(max_examples=40, deadline=None)
@given(shape=shapes, seed=st.integers(0, 1000), exponent=st.integers(-20, 20))
def test_fp8_errs_by_half_a_step_of_inputs_and_weights(shape, seed, exponent):
    """With |x' - x| <= u |x| + a s and |w' - w| <= u |w| + b s, the error is |x'| |w' - w| + |x' - x| |w|, summed."""
    tokens, width, rows = shape
    smooth = seeded(width, seed=seed + 2).abs() + 0.1
    x, weight = seeded(tokens, width, seed=seed) * 2.0**exponent, seeded(rows, width, seed=seed + 1)
    layer = fp8_layer(weight, smooth)
    inputs, matrix = (x * smooth).double(), weight.double() / smooth.double()
    of_inputs = EXACT * inputs.abs() + SMALLEST_FP8 / 2 * inputs.abs().amax(1, keepdim=True) / LARGEST_FP8
    of_weights = EXACT * matrix.abs() + SMALLEST_FP8 / 2 * layer.scale.double()[:, None]
    bound = (inputs.abs() + of_inputs) @ of_weights.t() + of_inputs @ matrix.abs().t()
    slack = 1e-5 * (inputs.abs() @ matrix.abs().t() + bound)  # of float32
    assert ((layer(x).double() - x.double() @ weight.double().t()).abs() <= bound + slack).all()


def test_fp8_rounds_both_factors():
    x, weight = seeded(50, 64), seeded(20, 64, seed=1)
    layer = fp8_layer(weight)
    errors = [(layer(x) - x @ matrix.t()).norm() / (x @ matrix.t()).norm() for matrix in (layer.matrix(), weight)]
    assert 1e-2 < errors[0] < errors[1] < 6e-2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), exponent=st.integers(-30, 30), token=st.integers(0, 3))
def test_fp8_is_invariant_to_the_scale_of_each_token(seed, exponent, token):
    layer, x = fp8_layer(seeded(7, 33, seed=seed)), seeded(4, 33, seed=seed + 1)
    scaled, expected = x.clone(), layer(x)
    scaled[token] *= 2.0**exponent
    expected[token] *= 2.0**exponent
    torch.testing.assert_close(layer(scaled), expected, rtol=1e-5, atol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), exponent=st.integers(-30, 30), row=st.integers(0, 6))
def test_fp8_is_invariant_to_the_scale_of_each_row(seed, exponent, row):
    weight, factor = seeded(7, 33, seed=seed), torch.ones(7)
    factor[row] = 2.0**exponent
    one, other = round_to_nearest(weight, Fp8Linear), round_to_nearest(weight * factor[:, None], Fp8Linear)
    assert torch.equal(one[0].float(), other[0].float())
    assert torch.equal(one[1] * factor, other[1])


@pytest.mark.parametrize("bias", [False, True])
def test_a_token_of_zeros_gives_the_bias_in_fp8(bias):
    layer = fp8_layer(seeded(5, 8), bias=bias)
    y = layer(torch.cat([torch.zeros(1, 8), seeded(1, 8, seed=3)]))
    assert torch.equal(y[0], layer.bias if bias else torch.zeros(5))
    assert (y[1] != y[0]).any()


@pytest.mark.parametrize("shape", [(1, 32, 16), (5, 64, 48), (33, 512, 32)])
def test_the_emulated_product_is_that_of_torch(shape):
    """The reference is torch's scaled product on CPUs, which takes widths and rows in multiples of 16."""
    tokens, width, rows = shape
    x, weight = (Fp8Linear.rounded(100 * seeded(n, width, seed=n)) for n in (tokens, rows))
    one = torch.ones(())
    expected = torch._scaled_mm(x, weight.t(), one, one, out_dtype=torch.float32)
    torch.testing.assert_close(Fp8Linear.product(x, weight), expected, rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize("layer", [Int8Linear, Fp8Linear])
@pytest.mark.parametrize(("rows", "multiple"), [(1, 8), (24, 8), (16, 16)])
def test_padding_appends_zeros_up_to_multiples(layer, rows, multiple):
    matrix = layer.rounded(100 * seeded(9, 20))
    padded = _padded(matrix, rows, multiple)
    assert padded.dtype == layer.dtype
    assert padded.shape[0] >= rows
    assert not any(size % multiple for size in padded.shape)
    assert torch.equal(padded[:9, :20].float(), matrix.float())
    assert padded.float().abs().sum() == matrix.float().abs().sum()
    assert _padded(padded, rows, multiple) is padded


def test_training_and_inference_in_fp8_agree():
    layer, x = fp8_layer(seeded(20, 64), seeded(64, seed=2).abs() + 0.5), seeded(30, 64, seed=1)
    expected = layer(x)
    x.requires_grad_(True)
    trained = layer(x)
    torch.testing.assert_close(trained.detach(), expected, rtol=1e-5, atol=1e-5)
    direction = seeded(30, 20, seed=3)
    (trained * direction).sum().backward()
    torch.testing.assert_close(x.grad, direction @ layer.matrix(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_types_stay_when_the_dtype_changes(dtype):
    layer = fp8_layer(seeded(5, 8), seeded(8, seed=2).abs() + 0.1, bias=True)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    changed = layer.to(dtype).state_dict()
    for name in ("weight", "scale", "smooth"):
        assert changed[name].dtype == before[name].dtype
        assert torch.equal(changed[name], before[name])
    assert changed["bias"].dtype == dtype
