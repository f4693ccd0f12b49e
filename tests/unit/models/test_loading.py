"""Children with precisions on disk and in memory again."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_children import CONFIGS, IN_BF16, QUANTIZED, VOCABULARY, child_of
from tiny_models import random_model

from tangram.child.assemble import save_child
from tangram.errors import TangramError
from tangram.models.loading import has_precisions, load_model
from tangram.training.parallel import World

TOKENS = torch.arange(2, 2 + 2 * 9).view(2, 9) * 7 % VOCABULARY
ARCHITECTURES = {"int8": QUANTIZED, "bf16": IN_BF16}


@pytest.fixture(params=ARCHITECTURES)
def saved(request, parent, tmp_path):
    """A child in memory, and its folder."""
    child = child_of(parent, ARCHITECTURES[request.param])
    save_child(child, child.config, tmp_path, tmp_path / "child", {})
    return child, tmp_path / "child"


@torch.no_grad()
def test_a_loaded_child_is_the_one_in_memory(saved):
    child, folder = saved
    assert has_precisions(folder)
    loaded, state = load_model(folder), child.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for name, tensor in loaded.state_dict().items():
        if tensor.dtype != torch.float32:
            assert load_file(folder / "model.safetensors")[name].dtype == tensor.dtype
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name
    types = {tensor.dtype for tensor in loaded.state_dict().values()}
    assert len(types) == 2
    assert types < {torch.float32, torch.bfloat16, torch.int8}
    assert torch.equal(loaded(TOKENS).logits, child(TOKENS).logits)


@torch.no_grad()
def test_factors_of_int8_stay_in_float32_in_a_bfloat16_child(parent, tmp_path):
    """In bfloat16 they would have eight significant bits, and smoothing would not cancel."""
    library = child_of(parent, QUANTIZED).state_dict()
    child = child_of(parent.bfloat16(), QUANTIZED)
    save_child(World().gather(child, torch.bfloat16), child.config, tmp_path, tmp_path / "child", {})
    loaded = load_model(tmp_path / "child", "bfloat16")
    for name, tensor in loaded.state_dict().items():
        factor = name.endswith((".scale", ".smooth"))
        assert tensor.dtype == (
            torch.float32 if factor else torch.int8 if library[name].dtype == torch.int8 else torch.bfloat16
        )
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
