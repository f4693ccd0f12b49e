import json
import os
from pathlib import Path

import pytest
from tiny_models import tiny_config

from tangram import vllm
from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.config import Costs, Scenario
from tangram.costs import vllm_engine
from tangram.costs.llama_layers import Part
from tangram.costs.vllm_bench import Bench, Stack, layers_of, pack, sizes_of, steps_of, write
from tangram.costs.vllm_engine import measure, measure_whole, slope
from tangram.errors import TangramError
from tangram.models.families import shape_of

CHAT = Scenario(prefill=8, generate=6, batch_sizes=(2,))
COSTS = Costs(repeats=3, max_repeats=3, stack_megabytes=1)
ATTENTION, FFN, LINEAR = Part("attention", 2), Part("ffn", 64), Part("linear", 0)
FIXED, PER_LAYER, PER_TOKEN = 0.5, {"attention": 0.03, "ffn": 0.02, "linear": 0.01}, 1e-6


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """The config of a tiny parent with enough tokens for the benchmark."""
    folder = tmp_path_factory.mktemp("parent")
    tiny_config("llama", vocab_size=12_000, head_dim=32).save_pretrained(folder)
    return folder


def test_a_cpu_runs_eagerly_and_a_gpu_as_it_serves():
    on_gpu = Bench({"chat": CHAT}, "cuda", "bfloat16", command=("python",))
    assert on_gpu.model_arguments("stacks/0") == [
        *("--model", "stacks/0", "--trust-remote-code", "--dtype", "bfloat16", "--load-format", "dummy"),
        *("--skip-tokenizer-init", "--disable-detokenize", "--max-model-len", "14"),
    ]
    assert on_gpu.run_arguments(Path("out"))[1] == [
        *("--input-len", "8", "--output-len", "6", "--batch-size", "2"),
        *("--num-iters-warmup", "2", "--num-iters", "3", "--output-json", "out/1.json"),
    ]
    assert on_gpu.run_arguments(Path("out"))[0][3] == "1"
    on_cpu = Bench({"chat": CHAT}, "cpu", "float32", random=False).model_arguments("child")
    assert "--enforce-eager" in on_cpu
    assert "dummy" not in on_cpu


def test_a_cpu_gets_its_threads_and_room_for_the_cache(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {7, 4, 5})
    environment = Bench({"chat": CHAT}, "cpu", "float32", threads=2).environment(3 * 2**30 // (2 * 14))
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "4,5"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "6"
    assert "VLLM_CPU_KVCACHE_SPACE" not in Bench({"chat": CHAT}, "cuda", "bfloat16").environment(3 * 2**30)


def test_subblocks_are_packed_as_in_the_export(parent):
    assert pack([ATTENTION, FFN, FFN, ATTENTION, ATTENTION, LINEAR]) == (
        *((ATTENTION, FFN), (None, FFN)),
        *((ATTENTION, None), (ATTENTION, LINEAR)),
    )
    child = Architecture((LayerChoice("no-op", "linear"), LayerChoice("gqa-1@int8", "no-op")))
    layers = layers_of(child, shape_of(parent))
    assert layers == ((Part("attention", 1), LINEAR), (Part("attention", 1, "int8"), None))


def test_a_config_names_shapes_and_matrices_of_eight_bits(parent, tmp_path):
    write(tmp_path, Stack(((ATTENTION, FFN), (None, Part("linear", 0, "int8"))), 500, "int8"), parent, positions=9)
    config = json.loads((tmp_path / "config.json").read_text())
    assert [block["ffn"]["intermediate_size"] for block in config["block_configs"]] == [64, 32]
    assert [block["attention"]["no_op"] for block in config["block_configs"]] == [False, True]
    assert (config["vocab_size"], config["mlp_bias"], config["tie_word_embeddings"]) == (500, True, False)
    (group,) = config["quantization_config"]["config_groups"].values()
    assert group["targets"] == ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj", "lm_head"]


def test_sizes_are_those_of_the_stored_tensors(parent):
    shape = shape_of(parent)  # hidden 32, 4 heads and 2 KV heads of width 32
    attention = 2 * 32 * (128 + 64) + 32
    assert sizes_of([(ATTENTION, None)], shape, "bfloat16") == (attention, 2 * attention, 2 * 2 * 32 * 2)
    rows = 128 + 2 * 64 + 32
    of_int8 = sizes_of([(Part("attention", 2, "int8"), None)], shape, "float32")
    assert of_int8 == (attention + rows, attention - 32 + 4 * 32 + 4 * rows, 2 * 2 * 32 * 4)
    assert sizes_of([(None, FFN)], shape, "float32")[:2] == (3 * 32 * 64 + 32, 4 * (3 * 32 * 64 + 32))


def test_vllm_must_be_installed(parent, monkeypatch):
    monkeypatch.setenv(vllm.PYTHON, "/nowhere")
    with pytest.raises(TangramError, match="vLLM is not installed; pip install vllm"):
        measure(parent, "ffn", "width-0.5", COSTS, {"chat": CHAT}, "cpu", "float32")


def test_a_vocabulary_below_the_benchmarks_is_refused(tmp_path):
    tiny_config("llama", vocab_size=500).save_pretrained(tmp_path)
    with pytest.raises(TangramError, match="draws tokens below 10000, but the parent's vocabulary has 500"):
        measure(tmp_path, "ffn", "width-0.5", COSTS, {"chat": CHAT}, "cpu", "float32")


@pytest.fixture
def additive(monkeypatch):
    """A clock by which models last the sum of their parts: costs must come out of it as they went in."""

    def times(self, model, kv_bytes_per_token):
        config = json.loads((model / "config.json").read_text())
        blocks = config["block_configs"]
        step = FIXED + PER_TOKEN * config["vocab_size"]
        step += sum(PER_LAYER["attention"] for block in blocks if not block["attention"]["no_op"])
        step += sum(
            PER_LAYER["ffn"] * block["ffn"]["intermediate_size"] for block in blocks if not block["ffn"]["no_op"]
        )
        return {("chat", 2): {"prefill": step * CHAT.prefill, "decode": step}}

    monkeypatch.setattr(Bench, "times", times)
    monkeypatch.setattr(vllm_engine, "COPIES", (2, 4))


@pytest.mark.parametrize(
    ("kind", "variant", "expected"),
    [
        ("attention", "gqa-1", PER_LAYER["attention"]),
        ("attention", "no-op", 0.0),
        ("attention", "linear", PER_LAYER["ffn"] * 32),
        ("ffn", "width-0.5", PER_LAYER["ffn"] * 32),
        ("head", "parent", PER_TOKEN * 12_000),
        ("model", "parent", FIXED),
    ],
)
def test_costs_of_an_additive_clock_are_its_parts(parent, additive, kind, variant, expected):
    prefill, decode = measure(parent, kind, variant, COSTS, {"chat": CHAT}, "cpu", "float32")
    assert (prefill["phase"], decode["phase"], decode["engine"]) == ("prefill", "decode", "vllm")
    assert prefill["seconds"] == pytest.approx(CHAT.prefill * expected)
    assert decode["seconds"] == pytest.approx(expected)


def test_whole_models_are_the_sums_of_an_additive_clock(parent, additive):
    whole = measure_whole(
        parent, {"parent": Architecture((LayerChoice(),) * 3)}, COSTS, {"chat": CHAT}, "cpu", "float32"
    )
    step = FIXED + PER_TOKEN * 12_000 + 3 * (PER_LAYER["attention"] + PER_LAYER["ffn"] * 64)
    assert whole["chat", "decode", 2]["parent"] == pytest.approx(step)
    assert whole["chat", "prefill", 2]["parent"] == pytest.approx(step * CHAT.prefill)


def test_a_slope_is_the_cost_of_one_copy_for_any_intercept():
    seconds = {stack: 5.0 + 0.25 * len(stack.layers) for stack in slope((ATTENTION, None), ((None, FFN),), 9)}
    parts = slope((ATTENTION, None), ((None, FFN),), 9)
    assert sum(weight * seconds[stack] for stack, weight in parts.items()) == pytest.approx(0.25)
    assert steps_of(CHAT) == 5


@pytest.mark.skipif(vllm.python() is None, reason=vllm.INSTALL)
def test_vllm_runs_a_config_alone(parent):
    child = Architecture((LayerChoice(), LayerChoice("no-op", "linear"), LayerChoice("gqa-1@int8", "no-op")))
    scenario = Scenario(prefill=64, generate=4, batch_sizes=(1, 2))
    whole = measure_whole(parent, {"child": child}, COSTS, {"chat": scenario}, "cpu", "float32")
    assert {batch for _, _, batch in whole} == {1, 2}
    assert whole["chat", "prefill", 2]["child"] > whole["chat", "decode", 2]["child"] > 0, "64 tokens against one"
