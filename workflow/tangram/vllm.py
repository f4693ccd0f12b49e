"""vLLM, which runs in a Python of its own: its versions of torch and transformers are not Tangram's.

Standard library only: the config imports this module.
"""

from __future__ import annotations

import os
import shutil

PYTHON = "TANGRAM_VLLM_PYTHON"  # the environment variable that names a Python with vLLM
INSTALL = f"pip install vllm in an environment of its own, and set {PYTHON} to its Python"


def command() -> list[str] | None:
    """Return the words that start vLLM's command line: `PYTHON`'s, or else `vllm` on PATH; None without both."""
    if python := os.environ.get(PYTHON):
        return [python, "-m", "vllm.entrypoints.cli.main"] if shutil.which(python) else None
    return ["vllm"] if shutil.which("vllm") else None
