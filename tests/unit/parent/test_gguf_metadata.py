"""All that a GGUF says of its model is carried over, to the same logits, or refused in one line."""

import json

import gguf
import numpy as np
import pytest
import torch
from tiny_gguf import parent_in_a_package, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from tangram.errors import TangramError
from tangram.parent.fetch import fetch as fetch_parent

TOKENS = torch.arange(3, 120)[None]
UNSCALED = {"rope_type": "default", "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"rope_theta": 5e5, "original_max_position_embeddings": 16}


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """Return a function that writes a checkpoint as a GGUF with ``more`` in it, and fetches that."""
    monkeypatch.chdir(tmp_path)

    def fetch(folder, more=lambda writer: None):
        write_gguf(folder, tmp_path / "model.gguf", more)
        fetch_parent(parent_in_a_package(tmp_path / "model.gguf"), tmp_path / "parent", "float32", {})
        return tmp_path / "parent"

    return fetch


def logits(folder):
    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder)(TOKENS).logits


def same(folder, original):
    return torch.allclose(logits(folder), logits(original), atol=1e-4)


def linear(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def linear_of_old(writer):
    writer.add_float32("llama.rope.scale_linear", 4.0)


def switched_off(writer):
    linear_of_old(writer)
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def yarn(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32)


def rope_freqs(parameters):
    """What llama.cpp's converter writes for Llama 3.1 and later, by its formula."""
    head_dim, theta = 16, parameters["rope_theta"]
    low = parameters["original_max_position_embeddings"] / parameters["low_freq_factor"]
    high = parameters["original_max_position_embeddings"] / parameters["high_freq_factor"]
    factors = []
    for frequency in 1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim):
        wavelength = 2 * np.pi / frequency
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(parameters["factor"])
        else:
            smooth = (parameters["original_max_position_embeddings"] / wavelength - parameters["low_freq_factor"]) / (
                parameters["high_freq_factor"] - parameters["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / parameters["factor"] + smooth))
    return lambda writer: writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))


CARRIED = [
    ("llama", {}, lambda writer: None),
    ("llama", {"tie_word_embeddings": True}, lambda writer: None),
    ("llama", {"rms_norm_eps": 1e-3, "rope_parameters": UNSCALED | {"rope_theta": 2e4}}, lambda writer: None),
    ("llama", {"attention_bias": True, "mlp_bias": True}, lambda writer: None),
    ("llama", {"rope_parameters": UNSCALED | {"rope_type": "linear", "factor": 4.0}}, linear),
    ("llama", {"rope_parameters": UNSCALED | {"rope_type": "linear", "factor": 4.0}}, linear_of_old),
    ("llama", {"rope_parameters": UNSCALED}, switched_off),
    ("llama", {"rope_parameters": UNSCALED | YARN}, yarn),
    ("llama", {"rope_parameters": LLAMA3}, rope_freqs(LLAMA3)),
    ("qwen2", {}, lambda writer: None),
    ("qwen3", {}, lambda writer: None),
    ("qwen3", {"tie_word_embeddings": True, "head_dim": 24}, lambda writer: None),
]


@pytest.mark.parametrize(("family", "overrides", "more"), CARRIED)
def test_the_same_model_comes_out(tiny_parent, fetched, family, overrides, more):
    original = tiny_parent(family, **overrides)
    assert same(fetched(original, more), original)


def test_rope_scaling_is_no_small_thing(tiny_parent, fetched):
    original = tiny_parent("llama", rope_parameters=CARRIED[4][1]["rope_parameters"])
    assert (logits(fetched(original)) - logits(original)).abs().max() > 1  # the key left out


def no_llama3(writer):
    writer.add_tensor("rope_freqs.weight", np.linspace(1, 2, 8, dtype=np.float32))


def longrope(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    writer.add_rope_scaling_factor(4.0)


REFUSED = [
    (no_llama3, "rope_freqs.weight matches no known parameters of Llama 3's scaling"),
    (longrope, r"llama.rope.scaling.type \(longrope\) cannot be carried over"),
    (lambda w: w.add_logit_scale(0.5), r"llama.logit_scale \(0.5\) cannot be carried over"),
    (lambda w: w.add_residual_scale(0.25), r"llama.residual_scale \(0.25\) cannot"),
    (lambda w: w.add_sliding_window(8), r"llama.attention.sliding_window \(8\) cannot"),
    (lambda w: w.add_expert_count(4), r"llama.expert_count \(4\) cannot"),
    (lambda w: w.add_float32("llama.attention.new_in_2027", 1.0), r"llama.attention.new_in_2027 \(1.0\) cannot"),
    (lambda w: w.add_value_length(8), r"contradicts another key for a head's width"),
    (
        lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(64, dtype=np.float32)),
        "its tensor blk.0.attn_q.bias has no place in a llama",
    ),
    (
        lambda w: w.add_tensor("blk.1.attn_sub_norm.weight", np.ones(32, dtype=np.float32)),
        "its tensor blk.1.attn_sub_norm.weight has no place in a llama",
    ),
]


@pytest.mark.parametrize(("more", "message"), REFUSED)
def test_what_cannot_be_said_is_refused_in_one_line(tiny_parent, fetched, tmp_path, more, message):
    with pytest.raises(TangramError, match=message) as caught:
        fetched(tiny_parent("llama"), more)
    assert str(caught.value).startswith("tiny-model==1.0: tiny_model/model.gguf cannot be taken as the parent: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "parent").exists()


def test_all_chat_templates_are_kept(tiny_parent, fetched):
    templates = {"default": "{{ messages[0].content }}", "tool_use": "tool: {{ messages[0].content }}"}
    folder = fetched(
        tiny_parent("llama"),
        lambda w: w.add_chat_template([{"name": n, "template": t} for n, t in templates.items()]),
    )
    assert AutoTokenizer.from_pretrained(folder).chat_template == templates


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_what_opens_and_closes_a_text_is_what_the_file_says(tiny_parent, fetched, bos, eos):
    def more(writer):
        writer.add_add_bos_token(bos)
        writer.add_add_eos_token(eos)

    tokenizer = AutoTokenizer.from_pretrained(fetched(tiny_parent("llama"), more))
    plain = tokenizer("The parent", add_special_tokens=False)["input_ids"]
    assert tokenizer("The parent")["input_ids"] == [1] * bos + plain + [2] * eos


def test_the_embedded_parent_s_numbers_are_decimals(tiny_parent, fetched):
    config = json.loads((fetched(tiny_parent("llama", rms_norm_eps=1e-5)) / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
