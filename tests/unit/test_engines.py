"""Engines, formats and the variants that each can express."""

import pytest

from tangram.engines import refusal, timed


@pytest.mark.parametrize(
    ("variant", "engine", "formats", "reason"),
    [
        ("parent@int8", "torch", (), None),
        ("parent@q8_0", "torch", (), "engine torch has no precision q8_0"),
        ("parent@q8_0", "llama.cpp", (), None),
        ("parent@bf16", "llama.cpp", ("decilm",), None),
        ("parent@int8", "llama.cpp", (), "engine llama.cpp has no precision int8"),
        ("parent@int8", "vllm", (), None),
        ("parent@bf16", "vllm", (), "engine vllm has no precision bf16"),
        ("lowrank-8", "vllm", (), "format decilm cannot express it"),
        ("parent@int8", "torch", ("decilm",), None),
        ("parent@int8", "torch", ("gguf",), "format gguf has no precision int8"),
        ("lowrank-8", "torch", (), None),
        ("lowrank-8", "llama.cpp", (), "format gguf cannot express it"),
        ("linear", "torch", ("gguf", "decilm"), None),
        ("linear", "torch", ("hf",), "format hf cannot express it"),
        ("linear-unbiased@q8_0", "llama.cpp", (), None),
        ("linear-unbiased", "torch", ("hf",), "format hf cannot express it"),
        ("butterfly-8", "torch", ("decilm",), "format decilm cannot express it"),
    ],
)
def test_each_engine_and_format_says_what_it_lacks(variant, engine, formats, reason):
    assert refusal(variant, engine, formats) == reason


def test_llama_cpp_times_its_reference_and_stubs():
    library = ["linear", "lowrank-8", "parent@int8"]
    assert timed("torch", "ffn", library) == tuple(library)
    assert timed("llama.cpp", "ffn", library) == ("parent@f16", "linear", "no-op")
    assert timed("llama.cpp", "ffn", ["linear-unbiased@q8_0"])[1:] == ("linear-unbiased@q8_0", "no-op")
    assert timed("llama.cpp", "attention", library) == ("parent@f16", "linear")
    assert timed("llama.cpp", "ffn", ["no-op", "linear"]) == ("parent@f16", "no-op", "linear")
