"""How fast the files of a run for llama.cpp are in OpenVINO GenAI: the same weights, workload and threads, round-robin.

Run on an idle machine, after ``make CONFIG=config/smollm2-llama.cpp.yaml``, with OpenVINO in an environment of its own:

    python -m venv ~/openvino && ~/openvino/bin/pip install openvino-genai==2026.4.1.0
    TANGRAM_OPENVINO_PYTHON=~/openvino/bin/python python tests/benchmarks/bench_engines.py results/smollm2-llama.cpp

OpenVINO reads the parent's files, but no child's whose layers differ (architecture `deci`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from tangram.config import Scenario
from tangram.engines import PARENT_TYPES
from tangram.evaluation.llama_speed import time_file
from tangram.timing import median_and_error

# Runs in OpenVINO's Python: prints seconds of prefill and of all decode steps, by the clock. Every run has new prompts,
# as the engine keeps the caches of earlier ones.
OPENVINO = """
import json, sys, time
import numpy, openvino, openvino_genai
path, batch, prefill, generate, threads, rounds = sys.argv[1], *map(int, sys.argv[2:])
pipeline = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
random = numpy.random.default_rng(0)

def seconds(tokens):
    ids = random.integers(100, 10000, (batch, prefill))
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
    settings = openvino_genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
    start = time.perf_counter()
    results = pipeline.generate(inputs, settings).tokens
    assert [len(result) for result in results] == [tokens] * batch
    return time.perf_counter() - start

seconds(1 + generate)
times = []
for _ in range(rounds):
    first = seconds(1)
    times.append([first, seconds(1 + generate) - first])
print(json.dumps(times))
"""


def in_openvino(path: Path, scenario: Scenario, batch: int, threads: int) -> list[float] | None:
    """Return the seconds of prefill and decode of a new process, the mean of two runs after one that warms up.

    None stands for a file that OpenVINO cannot read, such as one with tensors of type Q5_0.
    """
    words = [os.environ["TANGRAM_OPENVINO_PYTHON"], "-c", OPENVINO, path, batch, scenario.prefill, scenario.generate]
    done = subprocess.run([*map(str, [*words, threads, 2])], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"OpenVINO cannot run {path}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return [statistics.mean(phase) for phase in zip(*json.loads(done.stdout.splitlines()[-1]), strict=True)]


def main() -> None:
    """Print prefill and decode tokens per second of every file in both engines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--prefill", type=int, default=128)
    parser.add_argument("--generate", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    scenario = Scenario(prefill=options.prefill, generate=options.generate, batch_sizes=(options.batch,))
    parents = {f"parent, {name}": options.results / "engines" / "parent" / name / "model.gguf" for name in PARENT_TYPES}
    children = {path.parts[-4]: path for path in sorted(options.results.glob("targets/*/0/export/model.gguf"))}
    samples: dict[tuple[str, str], list[list[float]]] = {}
    for _ in range(options.rounds):
        for name, path in {**parents, **children}.items():
            seconds = time_file(path, {"": scenario}, options.threads)["", options.batch]
            samples.setdefault(("llama.cpp", name), []).append([seconds.prefill, seconds.decode])
        for name, path in parents.items():
            if times := in_openvino(path, scenario, options.batch, options.threads):
                samples.setdefault(("OpenVINO", name), []).append(times)
    print("| engine | model | prefill, tokens/s | decode, tokens/s | all tokens/s |\n|---|---|---|---|---|")
    for (engine, name), rounds in samples.items():
        counts = options.batch * options.prefill, options.batch * options.generate
        rates = [
            [counts[0] / prefill, counts[1] / decode, sum(counts) / (prefill + decode)] for prefill, decode in rounds
        ]
        cells = [f"{value:.0f} ± {error:.0f}" for value, error in map(median_and_error, zip(*rates, strict=True))]
        print("| " + " | ".join([engine, name, *cells]) + " |")


if __name__ == "__main__":
    main()
