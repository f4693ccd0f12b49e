"""Linear layers in fp8 against float64 and torch's scaled product, and the products that a GPU computes in int8."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangram.library.quantize import round_to_nearest
from tangram.models.quantized import Fp8Linear, Int8Linear, _padded

LARGEST, SMALLEST = 448.0, 2.0**-9  # of e4m3fn: the largest number, and the step of the subnormal ones
EXACT = 2.0**-4  # half a step of 3 mantissa bits, relative
shapes = st.tuples(st.integers(1, 9), st.integers(2, 40), st.integers(1, 24))


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
    bounded = x.clamp(-LARGEST, LARGEST)
    error = (rounded.double() - bounded.double()).abs()
    assert (error <= (EXACT * bounded.abs().double()).clamp_min(SMALLEST / 2)).all()
    assert torch.equal(Fp8Linear.rounded(rounded.float()), rounded)
    assert Fp8Linear.rounded(torch.tensor([1e9, -1e9])).float().tolist() == [LARGEST, -LARGEST]


@settings(max_examples=40, deadline=None)
@given(shape=shapes, seed=st.integers(0, 1000), exponent=st.integers(-20, 20))
def test_fp8_errs_by_half_a_step_of_inputs_and_weights(shape, seed, exponent):
    """With |x' - x| <= u |x| + a s and |w' - w| <= u |w| + b s, the error is |x'| |w' - w| + |x' - x| |w|, summed."""
    tokens, width, rows = shape
    smooth = seeded(width, seed=seed + 2).abs() + 0.1
    x, weight = seeded(tokens, width, seed=seed) * 2.0**exponent, seeded(rows, width, seed=seed + 1)
    layer = fp8_layer(weight, smooth)
    inputs, matrix = (x * smooth).double(), weight.double() / smooth.double()
    of_inputs = EXACT * inputs.abs() + SMALLEST / 2 * inputs.abs().amax(1, keepdim=True) / LARGEST
    of_weights = EXACT * matrix.abs() + SMALLEST / 2 * layer.scale.double()[:, None]
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
