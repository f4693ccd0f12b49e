"""Rounding to GGUF types: idempotent, within the bound of each type, and refused where it cannot be exact."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_children import LAYERS, PARENT_ONLY, child_of

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.blocks.base import GGUF_PRECISIONS
from tangram.errors import TangramError
from tangram.gguf_types import block_size, decode, encode, round_pieces, rounded

LEVELS = {"q8_0": 254, "q5_1": 31, "q5_0": 31, "q4_1": 15, "q4_0": 15}  # steps between the extremes of a block


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(GGUF_PRECISIONS), st.floats(1e-3, 10), st.floats(-0.5, 0.5))
def test_rounding_again_changes_nothing(seed: int, precision: str, scale: float, shift: float) -> None:
    weight = scale * (torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)) + shift)
    once = rounded(weight, precision, "w")
    assert torch.equal(rounded(once, precision, "w"), once)
    assert torch.equal(decode(encode(once, precision, "w"), precision), once)


@pytest.mark.parametrize("precision", LEVELS)
def test_the_error_is_within_a_step_of_the_block(precision: str) -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    blocks = weight.unflatten(1, (-1, block_size(precision)))
    errors = (rounded(weight, precision, "w") - weight).unflatten(1, (-1, block_size(precision))).abs().amax(-1)
    spread = blocks.amax(-1) - blocks.amin(-1) if precision.endswith("_1") else 2 * blocks.abs().amax(-1)
    step = spread / LEVELS[precision]
    # The grid of q4_0 and q5_0 has one level less on one side, where a value may be a whole step away.
    assert (errors <= (1.07 if precision in ("q4_0", "q5_0") else 0.52) * step).all()


def test_rows_without_whole_blocks_are_one_line() -> None:
    with pytest.raises(
        TangramError, match="ffn of layer 3 has rows of 40 weights, but q8_0 stores them in blocks of 32"
    ):
        rounded(torch.ones(2, 40), "q8_0", "ffn of layer 3")


def test_a_dtype_that_cannot_hold_the_values_is_one_line() -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    with pytest.raises(TangramError, match=r"w: torch\.bfloat16 cannot hold the values of q8_0"):
        rounded(weight, "q8_0", "w")


def test_a_trained_childs_pieces_are_rounded_and_nothing_else(llama) -> None:
    layers = (LayerChoice("parent@q8_0", "linear"), LayerChoice("gqa-1", "linear@q4_0"), *PARENT_ONLY.layers[2:])
    child = child_of(llama, Architecture(layers, "parent@q5_0"))
    assert len(child.model.layers) == LAYERS
    before = copy.deepcopy(child.state_dict())
    round_pieces(child)
    assert all(torch.equal(tensor, before[name]) for name, tensor in child.state_dict().items()), "rounded already"
    with torch.no_grad():
        for parameter in child.parameters():
            parameter.add_(1e-2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    moved = copy.deepcopy(child.state_dict())
    round_pieces(child)
    types = {"model.layers.0.self_attn.": "q8_0", "model.layers.1.mlp.": "q4_0", "lm_head.": "q5_0"}
    for name, tensor in child.state_dict().items():
        precision = next((p for prefix, p in types.items() if name.startswith(prefix) and tensor.ndim > 1), None)
        expected = moved[name] if precision is None else rounded(moved[name], precision, name)
        assert torch.equal(tensor, expected)
        assert (precision is None) == torch.equal(tensor, moved[name])
