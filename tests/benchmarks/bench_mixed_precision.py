"""Do the costs of bf16 and int8 subblocks add up? Whole models that mix them beside models of one precision.

``python tests/benchmarks/bench_mixed_precision.py results/smollm2-cpu/parent``. All models run round-robin. If costs
are additive, attention in one precision and FFNs in the other take together what both models of one precision take;
and so does a model whose layers alternate. Weights are random; the LM head stays the parent's.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.config import Scenario
from tangram.costs.passes import Passes, mean_length_passes, time_passes
from tangram.costs.torch_engine import random_model
from tangram.models.families import Shape, read_config
from tangram.models.packed import pack
from tangram.timing import median_and_error

PRECISIONS = ("bf16", "int8")
SAME = [f"attention {precision}, FFN {precision}" for precision in PRECISIONS]


def architectures(layers: int) -> dict[str, Architecture]:
    """Return the models by name: the attention's and the FFN's precision, or how layers of both are mixed."""
    choices = {(a, f): LayerChoice(f"parent@{a}", f"parent@{f}") for a in PRECISIONS for f in PRECISIONS}
    found = {f"attention {a}, FFN {f}": (choice,) * layers for (a, f), choice in choices.items()}
    one, other = (choices[precision, precision] for precision in PRECISIONS)
    found["layers alternate"] = tuple(one if i % 2 else other for i in range(layers))
    found["first half bf16, second int8"] = (one,) * (layers // 2) + (other,) * (layers - layers // 2)
    return {name: Architecture(found[name]) for name in found}


def excess(samples: dict[str, list[float]], mixed: str) -> str:
    """Return how much longer than the mean of both models of one precision a mixed one takes, in per cent."""
    same = np.mean([samples[name] for name in SAME], axis=0)
    middle, error = median_and_error(list(samples[mixed] / same))
    return f"{100 * (middle - 1):+.1f} ± {100 * error:.1f} %"


def main() -> None:
    """Print both phases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parent", type=Path)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prefill", type=int, default=128)
    parser.add_argument("--generate", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    scenario = Scenario(prefill=options.prefill, generate=options.generate, batch_sizes=[options.batch])
    layers = Shape.of(read_config(options.parent)).num_layers
    models = architectures(layers)
    passes = {
        name: mean_length_passes(
            Passes.of_model, pack(random_model(options.parent, models[name], "float32", "cpu")), scenario, options.batch
        )
        for name in models
    }
    for phase, samples in time_passes(passes, options.rounds, "cpu").items():
        print(f"\n| {phase} | ms, median | over the mean of both precisions |\n|---|---|---|")
        for name, values in samples.items():
            ratio = "" if name in SAME else excess(samples, name)
            print(f"| {name} | {1000 * np.median(values):.1f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
