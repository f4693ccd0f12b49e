"""Packed layers and models against the layers and models that they are made of."""

import copy

import pytest
import torch
from test_quantized import int8_layer, seeded
from tiny_children import CONSTANTS, FACTORS, HIDDEN, IN_BF16, IN_FP8, MIXED, QUANTIZED, VOCABULARY, child_of
from torch import nn

from tangram.models import packed
from tangram.models.packed import PackedFFN, PackedLinear, PackedNorm, Part, pack
from tangram.models.packed_attention import PackedAttention
from tangram.models.quantized import BFloat16Linear, ScaledLinear

TOKENS = torch.arange(2, 2 + 2 * 9).view(2, 9) * 7 % VOCABULARY


def layers_of(precision: str | None, bias: bool) -> list[nn.Module]:
    """Return three layers of equal inputs."""
    if precision == "int8":
        smooth = seeded(64, seed=4).abs() + 0.5
        return [int8_layer(seeded(rows, 64, seed=rows), smooth, bias) for rows in (16, 8, 8)]
    linear = nn.Linear if precision is None else BFloat16Linear
    torch.manual_seed(0)
    return [linear(64, rows, bias).requires_grad_(False) for rows in (16, 8, 8)]


@pytest.fixture(params=["onednn", "torch"])
def kernels(request, monkeypatch):
    """The int8 kernels of oneDNN, where they are exact, and those of torch."""
    if request.param == "torch":
        monkeypatch.setattr(packed, "_onednn_is_exact", lambda: False)


TOLERANCES = {None: 2e-6, "int8": 2e-6, "bf16": 2.0**-7}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("shape", [(1, 1, 64), (3, 5, 64), (7, 64)])
def test_packed_layers_give_their_outputs_in_order(precision, bias, shape):
    layers, x = layers_of(precision, bias), seeded(*shape, seed=1)
    outputs = PackedLinear(layers)(x).split([16, 8, 8], dim=-1)
    for layer, output in zip(layers, outputs, strict=True):
        expected = layer(x)
        assert (output.shape, output.dtype) == (expected.shape, expected.dtype)
        assert (output - expected).norm() <= TOLERANCES[precision] * expected.norm()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("tokens", [1, 4, 33])
def test_integer_sums_are_exact(tokens):
    """Inputs whose largest entry is 127 have steps of 1, and sums below 2^24 are exact in float32."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (tokens, 512), generator=generator)
    x[:, 0] = 127
    x[0] = 127
    layer = int8_layer(torch.randint(-127, 128, (24, 512), generator=generator).float())
    layer.weight[0] = 127  # the largest sum
    layer.scale.fill_(127)  # so that the products of scales are 1 and 127
    sums = torch._int_mm(x.to(torch.int8), layer.weight.t())
    assert sums.max() == 127 * 127 * 512
    assert torch.equal(PackedLinear([layer])(x.float()), sums.float() * 127)
    assert torch.equal(layer(x.float()), sums.float() * 127)


def test_parts_compute_their_shared_product_once(monkeypatch):
    shared = PackedLinear(layers_of(None, bias=False))
    parts, calls = [Part(shared, index) for index in range(3)], []
    kernel = shared._kernel
    monkeypatch.setattr(shared, "_kernel", lambda x: calls.append(len(x)) or kernel(x))
    for x in (seeded(2, 64), seeded(5, 64)):
        outputs = [part(x) for part in parts]
        assert torch.equal(torch.cat(outputs, dim=-1), kernel(x))
        assert shared._shared is None  # the last part lets the input go
    assert calls == [2, 5]
    parts[0](seeded(2, 64))
    other = seeded(2, 64, seed=1)
    assert torch.equal(parts[1](other), kernel(other)[:, 16:24])  # an interrupted pass leaves nothing behind


def test_layers_of_another_class_bias_or_smoothing_stay_apart():
    plain, biased = layers_of(None, bias=False), layers_of(None, bias=True)
    rounded = layers_of("int8", bias=False)
    other = int8_layer(seeded(8, 64), seeded(64, seed=5).abs() + 0.5)
    assert packed._joinable(plain)
    assert packed._joinable(rounded)
    for layers in ([plain[0], biased[1]], [plain[0], rounded[1]], [rounded[0], other], [nn.Identity()]):
        assert not packed._joinable(layers)


def of_kind(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


@pytest.mark.parametrize("size", [0, 1e-6, 1, 1e6])
def test_packed_norms_divide_by_the_root_mean_square(size):
    x, weight = size * torch.randn(2, 3, 40, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    norm = PackedNorm(weight.float(), 1e-5)
    torch.testing.assert_close(norm(x.float()).double(), expected, rtol=1e-6, atol=1e-7)


@torch.no_grad()
def test_a_packed_parent_computes_what_it_did(parent):
    fast = pack(copy.deepcopy(parent))
    torch.testing.assert_close(fast(TOKENS).logits, parent(TOKENS).logits, rtol=1e-5, atol=1e-5)
    layers, family = len(parent.model.layers), parent.config.model_type
    # Norms of queries and keys are between the product and the rotation, Gemma 2 caps products, and two of SmolLM3's
    # layers rotate nothing.
    others = layers if family in ("qwen3", "olmo2", "gemma2", "gemma3_text") else 2 if family == "smollm3" else 0
    assert len(of_kind(fast, Part)) == 3 * others
    assert len(of_kind(fast, PackedFFN)) == layers
    assert len(of_kind(fast, PackedAttention)) == layers - others
    assert of_kind(fast, nn.Linear) == []
    assert of_kind(parent, Part) == []


@torch.no_grad()
@pytest.mark.parametrize(
    ("architecture", "tolerance"),
    [(MIXED, 1e-6), (CONSTANTS, 1e-6), (IN_BF16, 2e-2), (QUANTIZED, 1e-2), (IN_FP8, 1e-2), (FACTORS, 2e-2)],
    ids=["mixed", "constants", "bf16", "int8", "fp8", "factors"],
)
def test_a_packed_child_computes_what_it_did(parent, architecture, tolerance):
    """In int8, a last bit of an input may round it to the next integer."""
    child = child_of(parent, architecture)
    expected = child(TOKENS).logits
    logits = child_of(parent, architecture).pack()(TOKENS).logits
    assert logits.dtype == expected.dtype
    assert (logits - expected).norm() < tolerance * expected.norm()


@torch.no_grad()
def test_the_factors_of_operators_are_packed(llama):
    fast = child_of(llama, FACTORS).pack()
    linear = of_kind(fast, PackedLinear)
    assert {f"model.layers.0.mlp.gate_proj.{factor}" for factor in ("down", "up")} <= set(linear)
    assert of_kind(fast, nn.Linear) == of_kind(fast, ScaledLinear) == []


@torch.no_grad()
@pytest.mark.parametrize("architecture", [None, MIXED, QUANTIZED], ids=["parent", "mixed", "int8"])
def test_packed_models_generate_the_same_tokens(parent, architecture):
    model = parent if architecture is None else child_of(parent, architecture)
    greedy = {"attention_mask": torch.ones_like(TOKENS), "max_new_tokens": 6, "do_sample": False}
    expected = model.generate(TOKENS, **greedy)
    assert torch.equal(pack(copy.deepcopy(model)).generate(TOKENS, **greedy), expected)


def test_a_packed_model_cannot_be_saved(llama, tmp_path):
    fast = pack(llama)
    with pytest.raises(RuntimeError, match=r"qkv_proj is packed for inference; load the checkpoint again"):
        fast.state_dict()
    with pytest.raises(RuntimeError, match="packed for inference"):
        fast.save_pretrained(tmp_path)


def test_packing_keeps_a_tied_embedding(llama):
    embedding = llama.model.embed_tokens.weight
    expected = llama(TOKENS).logits
    fast = pack(llama)
    assert fast.model.embed_tokens.weight is embedding
    torch.testing.assert_close(fast(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)
    assert fast.lm_head.in_features == HIDDEN
