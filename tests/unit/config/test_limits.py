"""A config against its parent: what does not fit is one line, as soon as the parent's own config is known."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tangram.blocks import get_block
from tangram.blocks.base import GGUF_PRECISIONS
from tangram.cli import Pieces
from tangram.commands.build_corpus import build_corpus
from tangram.commands.distill_blocks import distill_blocks
from tangram.commands.measure_costs import measure_costs
from tangram.config import limits, parse
from tangram.errors import TangramError
from tangram.gguf_types import block_size
from tangram.models.families import NORMS_BEHIND, Shape

PARENT = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
SHAPE = Shape("llama", 3, 32, 4, 2, 16, 64, 328, False)


def changed(config: dict, **sections: Any) -> dict:
    """Return a config with keys of some sections replaced."""
    config = copy.deepcopy(config)
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    return config


def selection(**keys: Any) -> dict:
    constraints = [{"quantity": "parameters", "max": 0.9}]
    return {"small": {"constraints": constraints, "solutions": 2, "selection": keys}}


MISTAKES = {
    "layers": ({"parent": {"num_layers": 4}}, "config.parent has num_layers: 4, but the checkpoint differs; write"),
    "heads": ({"parent": {"num_attention_heads": 8}}, "write num_attention_heads: 4"),
    "KV heads": ({"parent": {"num_kv_heads": 4}}, "write num_kv_heads: 2"),
    "a sequence": (
        {
            "corpus": {
                "sequence_length": 129,
                **{
                    s: {"tokens": 999, "sources": [{"type": "python-docs"}]}
                    for s in ("distill", "score", "finetune", "heldout")
                },
            }
        },
        "config.corpus.sequence_length: 129 tokens exceed the parent's 128 positions",
    ),
    "a scenario": (
        {"scenarios": {"long": {"prefill": 100, "generate": 29, "batch_sizes": [1]}}},
        "config.scenarios.long: prefill + generate: 129 tokens exceed the parent's 128 positions",
    ),
    "a long text": (
        {"evaluation": {"long_context": {"lengths": [64, 129]}}},
        "config.evaluation.long_context.lengths[1]: 129 tokens exceed the parent's 128 positions",
    ),
    "a judged continuation": (
        {"targets": selection(metric="judge", policy="rucb", prompt_tokens=32, continuation_tokens=97)},
        "config.targets.small.selection: prompt_tokens + continuation_tokens: 129",
    ),
    "a rank": (
        {"library": {"ffn": ["no-op", "lowrank-100000"]}},
        "config.library.ffn[1]: 'lowrank-100000' has no fewer weights than the parent's matrices of 32 x 64",
    ),
    "a rank of equal weights": ({"library": {"attention": ["no-op", "ntk-22"]}}, "matrices of 32 x 32 and 64"),
    "a butterfly": ({"library": {"attention": ["no-op", "butterfly-64"]}}, "'butterfly-64' has no fewer weights"),
    "a width with a precision": (
        {"library": {"ffn": ["no-op", "width-0.95@int8"]}},
        "config.library.ffn[1]: 'width-0.95@int8' has 64 channels, no fewer than the parent's 64",
    ),
    "a width": (
        {"library": {"ffn": ["no-op", "width-0.95"]}},
        "config.library.ffn[1]: 'width-0.95' has 64 channels, no fewer than the parent's 64",
    ),
}


ROWS = {
    "a listed width": (
        {"ffn": ["no-op", "width-0.4@q4_0"]},
        {},
        "config.library.ffn[1]: 'width-0.4@q4_0' has rows of 40 weights, and q4_0 stores them in blocks of 32; choose "
        "width-0.3@q4_0 (32 channels) or width-0.7@q4_0 (64 channels), or take f16",
    ),
    "a width of precisions": (
        {"ffn": ["no-op", "width-0.1"], "precisions": {"ffn": ["f16", "q8_0"]}},
        {},
        "config.library.precisions.ffn: 'width-0.1@q8_0' has rows of 8 weights, and q8_0 stores them in blocks of 32; "
        "choose width-0.3@q8_0 (32 channels), or take f16",
    ),
    "the parent's own width": (
        {"ffn": ["parent@q5_1", "no-op"]},
        {"intermediate_size": 72},
        "config.library.ffn[0]: 'parent@q5_1' has rows of 72 weights, and q5_1 stores them in blocks of 32; take f16",
    ),
    "heads": (
        {"attention": ["gqa-1@q8_0", "no-op"]},
        {"head_dim": 12},
        "config.library.attention[0]: 'gqa-1@q8_0' has rows of 48 weights",
    ),
    "the hidden size": (
        {"ffn": ["width-0.5@q8_0", "no-op"], "head": ["parent@q8_0"]},
        {"hidden_size": 48},
        "config.library.ffn[0]: 'width-0.5@q8_0' has rows of 48 weights, and q8_0 stores them in blocks of 32; take",
    ),
}


@pytest.mark.parametrize("mistake", ROWS)
def test_rows_that_a_type_cannot_store_are_one_line(
    mistake: str, tiny_config: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, sizes, message = ROWS[mistake]
    config = {**in_llama_cpp(tiny_config), "library": {"attention": ["no-op"], **library}}
    monkeypatch.setattr(limits, "find", lambda: ("xllamacpp", []))
    with pytest.raises(TangramError) as caught:
        limits.check(parse(config), {**PARENT, "intermediate_size": 96, **sizes})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_of_whole_blocks_pass(tiny_config: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    library = {
        "attention": ["linear", "gqa-1", "no-op"],
        "ffn": ["width-0.33", "width-0.7@q8_0", "width-0.4@f16", "linear", "no-op"],
    }
    library["precisions"] = {"attention": list(GGUF_PRECISIONS), "head": ["q8_0"]}
    monkeypatch.setattr(limits, "find", lambda: ("xllamacpp", []))
    limits.check(parse({**in_llama_cpp(tiny_config), "library": library}), {**PARENT, "intermediate_size": 96})
    assert {block_size(p) for p in GGUF_PRECISIONS if p != "f16"} == {limits.ROW_BLOCK}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_fit_is_one_line(mistake: str, tiny_config: dict) -> None:
    sections, message = MISTAKES[mistake]
    with pytest.raises(TangramError) as caught:
        limits.check(parse(changed(tiny_config, **sections)), PARENT)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", NORMS_BEHIND)
def test_compensation_is_refused_before_any_job(family: str, tiny_config: dict) -> None:
    config = parse(changed(tiny_config, assembly={"compensate": True}))
    limits.check(config, {**PARENT, "model_type": "llama"})
    with pytest.raises(TangramError, match=f"config.assembly.compensate: {family} has norms behind its subblocks"):
        limits.check(config, {**PARENT, "model_type": family})


def test_what_fits_passes(tiny_config: dict) -> None:
    library = {"attention": ["no-op", "ntk-10", "lowrank-21", "butterfly-8"], "ffn": ["no-op", "width-0.9", "ntk-21"]}
    config = changed(
        tiny_config,
        library=library,
        scenarios={"long": {"prefill": 100, "generate": 28, "batch_sizes": [1]}},
    )
    limits.check(parse(config), PARENT)
    limits.check(parse(config), None)  # nothing is known yet
    limits.check(parse(config), {})


def test_sizes_in_the_config_are_checked_against_the_library(tiny_config: dict) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 328}
    config = changed(tiny_config, parent={"sizes": sizes}, library={"ffn": ["no-op", "lowrank-22"]})
    with pytest.raises(TangramError, match="no fewer weights"):
        limits.check(parse(config), None)


@pytest.mark.parametrize("kind", ["attention", "ffn"])
@pytest.mark.parametrize("family", ["lowrank", "ntk", "butterfly"])
def test_no_variant_is_refused_that_its_block_takes(kind: str, family: str, tiny_config: dict) -> None:
    config = parse(tiny_config)
    for size in range(1, 70):
        variant = f"{family}-{size}"
        try:
            get_block(kind, variant, SHAPE).overrides()
        except TangramError:
            if family != "butterfly":  # whose stages the block alone counts
                with pytest.raises(TangramError):
                    limits.check_variant("library", kind, variant, config, PARENT)
        else:
            limits.check_variant("library", kind, variant, config, PARENT)


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({}, 128),
        ({"rope_parameters": {"rope_type": "default"}}, 128),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 512),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 128}}, 512),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8, "original_max_position_embeddings": 8}}, 128),
        ({"rope_scaling": None}, 128),
    ],
)
def test_scaled_rotary_embeddings_reach_further(rope: dict, positions: int) -> None:
    assert limits.positions(PARENT | rope) == positions
    assert limits.positions(rope) is None


def test_the_first_jobs_stop_where_nothing_was_known_before(tiny_parent: Callable[..., Path], tmp_path: Path) -> None:
    parent, output = str(tiny_parent("llama")), str(tmp_path / "output")
    split = {"tokens": 500, "sources": [{"type": "python-docs"}]}
    settings = json.dumps({"sequence_length": 129, "cross_documents": False, "split": split})
    with pytest.raises(TangramError, match=r"config\.corpus\.sequence_length: 129 tokens exceed the parent's 128"):
        build_corpus(settings, "score", parent, output)
    scenario = {"prefill": 128, "generate": 1, "batch_sizes": [1]}
    settings = json.dumps({"costs": {}, "scenarios": {"long": scenario}})
    with pytest.raises(TangramError, match=r"config\.scenarios\.long: prefill \+ generate: 129"):
        measure_costs(settings, "ffn", "linear", parent, output)
    nothing = str(tmp_path / "nothing")  # neither corpus nor activations are looked at
    with pytest.raises(TangramError, match="'lowrank-22' has no fewer weights"):
        distill_blocks("{}", Pieces("ffn", "lowrank-22", range(3)), parent, nothing, nothing, output, output, output)
    assert not list(tmp_path.iterdir())


def in_llama_cpp(config: dict, **keys: Any) -> dict:
    """Return a config whose only target is in llama.cpp."""
    target = {"engine": "llama.cpp", "constraints": [{"quantity": "parameters", "max": 0.9}]}
    library = {"attention": ["gqa-1", "no-op"], "ffn": ["no-op"], "head": []}
    return {**copy.deepcopy(config), "library": library, "targets": {"small": target}, **keys}


def test_an_engine_that_is_not_installed_is_one_line(tiny_config: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse(in_llama_cpp(tiny_config))
    monkeypatch.setattr(limits, "find", lambda: ("xllamacpp", []))
    limits.check(settings, PARENT)
    monkeypatch.setattr(limits, "find", lambda: None)
    message = r"^config\.targets\.small\.engine: llama\.cpp is not installed; install it: pip install .*engines[^\n]*$"
    with pytest.raises(TangramError, match=message):
        limits.check(settings, PARENT)


def test_vllm_must_be_found_and_know_enough_tokens(tiny_config: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    config = in_llama_cpp(tiny_config)
    config["targets"]["small"]["engine"] = "vllm"
    settings = parse(config)
    assert settings.targets["small"].formats == ("decilm",)
    monkeypatch.setenv("TANGRAM_VLLM_PYTHON", sys.executable)
    limits.check(settings, {**PARENT, "vocab_size": 10_000})
    message = r"^config\.targets\.small\.engine: vLLM's latency benchmark draws tokens below 10000, [^\n]* has 9999; "
    with pytest.raises(TangramError, match=message):
        limits.check(settings, {**PARENT, "vocab_size": 9999})
    with pytest.raises(TangramError, match=r"targets\.small\.export: format decilm cannot express [^\n]* qwen2"):
        limits.check(settings, {**PARENT, "vocab_size": 10_000, "model_type": "qwen2"})
    monkeypatch.setenv("TANGRAM_VLLM_PYTHON", "/nowhere")
    message = r"^config\.targets\.small\.engine: vLLM is not installed; pip install vllm [^\n]* TANGRAM_VLLM_PYTHON "
    with pytest.raises(TangramError, match=message):
        limits.check(settings, PARENT)


def test_llama_cpp_on_a_gpu_is_one_line(tiny_config: dict) -> None:
    message = r"targets\.small\.engine: llama\.cpp runs on the CPU here, and device is cuda; set device: cpu[^\n]*$"
    with pytest.raises(TangramError, match=message):
        parse(in_llama_cpp(tiny_config, device="cuda"))
