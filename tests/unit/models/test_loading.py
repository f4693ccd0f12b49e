"""Children with precisions on disk and in memory again."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_children import CONFIGS, FACTORS, IN_BF16, IN_FP8, QUANTIZED, VOCABULARY, child_of
from tiny_models import random_model

from tangram.child.assemble import save_child
from tangram.errors import TangramError
from tangram.models.loading import has_precisions, load_model
from tangram.training.parallel import World

TOKENS = torch.arange(2, 2 + 2 * 9).view(2, 9) * 7 % VOCABULARY
ARCHITECTURES = {"int8": QUANTIZED, "bf16": IN_BF16, "fp8": IN_FP8, "factors": FACTORS}
TYPES = {"int8": {torch.int8}, "bf16": {torch.bfloat16}, "fp8": {torch.float8_e4m3fn}}
TYPES["factors"] = TYPES["int8"] | TYPES["bf16"]


@pytest.fixture(params=ARCHITECTURES)
def saved(request, parent, tmp_path):
    """A child in memory, its folder, and the types of its matrices with a precision."""
    child = child_of(parent, ARCHITECTURES[request.param])
    save_child(child, child.config, tmp_path, tmp_path / "child", {})
    return child, tmp_path / "child", TYPES[request.param]


@torch.no_grad()
def test_a_loaded_child_is_the_one_in_memory(saved):
    child, folder, matrices = saved
    assert has_precisions(folder)
    loaded, state = load_model(folder), child.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for name, tensor in loaded.state_dict().items():
        if tensor.dtype != torch.float32:
            assert load_file(folder / "model.safetensors")[name].dtype == tensor.dtype
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name
    types = {tensor.dtype for tensor in loaded.state_dict().values()}
    assert types == {torch.float32} | matrices
    assert torch.equal(loaded(TOKENS).logits, child(TOKENS).logits)


@torch.no_grad()
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_factors_of_8_bits_stay_in_float32_in_a_bfloat16_child(parent, tmp_path, precision):
    """In bfloat16 they would have eight significant bits, and smoothing would not cancel."""
    (dtype,), architecture = TYPES[precision], ARCHITECTURES[precision]
    library = child_of(parent, architecture).state_dict()
    child = child_of(parent.bfloat16(), architecture)
    save_child(World().gather(child, torch.bfloat16), child.config, tmp_path, tmp_path / "child", {})
    loaded = load_model(tmp_path / "child", "bfloat16")
    for name, tensor in loaded.state_dict().items():
        factor = name.endswith((".scale", ".smooth"))
        assert tensor.dtype == (torch.float32 if factor else dtype if library[name].dtype == dtype else torch.bfloat16)
        assert torch.equal(tensor, child.state_dict()[name]), name
    name = "model.layers.0.mlp.up_proj.scale"
    assert not torch.equal(loaded.state_dict()[name], loaded.state_dict()[name].bfloat16().float())
    assert torch.equal(loaded(TOKENS).logits, child(TOKENS).logits)


def test_int8_in_a_stock_checkpoint_is_refused(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    assert not has_precisions(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"] = state["model.layers.0.mlp.up_proj.weight"].to(torch.int8)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(TangramError, match=r"is quantized \(type I8\); dequantize it first"):
        load_model(tmp_path)


def test_nan_in_a_matrix_of_fp8_is_refused(llama, tmp_path):
    child = child_of(llama, IN_FP8)
    child.get_submodule("model.layers.0.mlp.up_proj").weight[0, 0] = torch.nan
    save_child(child, child.config, tmp_path, tmp_path / "child", {})
    with pytest.raises(TangramError, match=r"weight model\.layers\.0\.mlp\.up_proj\.weight holds NaN"):
        load_model(tmp_path / "child")


@pytest.mark.parametrize("name", ["mlp.up_proj.scale", "mlp.up_proj.smooth", "self_attn.q_proj.bias"])
def test_nan_in_a_child_in_int8_is_refused(llama, tmp_path, name):
    child = child_of(llama, QUANTIZED)
    child.get_submodule("model.layers.0").state_dict()[name][0] = torch.nan
    save_child(child, child.config, tmp_path, tmp_path / "child", {})
    with pytest.raises(TangramError, match=rf"weight model\.layers\.0\.{name} holds NaN"):
        load_model(tmp_path / "child")


def test_a_child_whose_config_forgot_its_precision_is_refused(tmp_path):
    child = child_of(random_model(CONFIGS["qwen3"]), QUANTIZED)
    save_child(child, child.config, tmp_path, tmp_path / "child", {})
    path = tmp_path / "child" / "config.json"
    config = json.loads(path.read_text())
    config["head_precision"] = None
    path.write_text(json.dumps(config))
    with pytest.raises(TangramError, match=r"lm_head\.scale"):
        load_model(tmp_path / "child")
