"""Log-probabilities of prompts in vLLM; its own Python runs this file: JOB is JSON, OUTPUT becomes safetensors.

    python vllm_logprobs.py JOB OUTPUT

JOB: ``{"folders": {name: checkpoint}, "prompts": [[token, ...], ...]}``. OUTPUT has the tensor ``{name}/{prompt}`` of
shape ``(tokens - 1, vocabulary)``: row i has log p(. | the first i + 1 tokens).
"""

import gc
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # several models in turn in one process
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import save_file
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory


def logprobs(folder: str, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Return the log-probabilities of all prompts, which run as one batch."""
    llm = LLM(
        folder,
        trust_remote_code=True,
        dtype="float32",
        enforce_eager=True,
        max_logprobs=-1,
        max_model_len=1 + max(map(len, prompts)),
        enable_prefix_caching=False,
    )
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
    rows = [
        torch.tensor(
            [[position[token].logprob for token in range(len(position))] for position in one.prompt_logprobs[1:]]
        )
        for one in outputs
    ]
    del llm, outputs
    gc.collect()
    cleanup_dist_env_and_memory()
    return rows


def main(job: str, output: str) -> None:
    """Run every checkpoint of a job."""
    settings = json.loads(Path(job).read_text())
    tensors = {}
    for name, folder in settings["folders"].items():
        for index, rows in enumerate(logprobs(folder, settings["prompts"])):
            tensors[f"{name}/{index}"] = rows
    save_file(tensors, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
