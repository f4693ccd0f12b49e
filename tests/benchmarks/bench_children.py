"""How fast all children of a run are: round-robin in one process, over the stock and over the packed parent.

Run on an idle machine, after `make`: ``python tests/benchmarks/bench_children.py results/smollm2-cpu``.

The pipeline times each child in a job of its own, beside its parent. A machine's speed may differ between jobs, and not
equally for all kernels; here all models share every round. The order of the models changes from round to round.
"""

import argparse
import random
import statistics
import time
from pathlib import Path

import torch

from tangram.config import Scenario
from tangram.costs.passes import Passes, fastest_kernels
from tangram.models.loading import load_model
from tangram.models.packed import pack
from tangram.timing import median_and_error

STOCK, PACKED = "stock parent", "packed parent"


def time_rounds(models: dict[str, Passes], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of prefill and of all decode steps of every model in every round."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    order = list(models)
    with fastest_kernels():
        for _ in range(repeats + 1):
            random.shuffle(order)
            for name in order:
                start = time.perf_counter()
                models[name].prefill()
                middle = time.perf_counter()
                models[name].decode()
                seconds[name].append((middle - start, time.perf_counter() - middle))
    return {name: values[1:] for name, values in seconds.items()}  # the first round warms up


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of a finished run")
    parser.add_argument("--repeats", type=int, default=9, help="rounds")
    parser.add_argument("--batch", type=int, default=4, help="sequences")
    parser.add_argument("--prefill", type=int, default=128, help="prompt tokens")
    parser.add_argument("--generate", type=int, default=32, help="generated tokens")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    random.seed(0)
    torch.manual_seed(0)
    scenario = Scenario(prefill=options.prefill, generate=options.generate, batch_sizes=(options.batch,))
    folders = {STOCK: options.results / "parent", PACKED: options.results / "parent"}
    for path in sorted(options.results.glob("targets/*/*/child")):
        folders[f"{path.parent.parent.name}, {path.parent.name}"] = path
    models = {}
    for name, folder in folders.items():
        model = load_model(folder)
        model = model if name == STOCK else pack(model)
        prompt = torch.randint(model.config.vocab_size, (scenario.batch_sizes[0], scenario.prefill))
        models[name] = Passes.of_model(model, prompt, prompt, scenario.generate)
    seconds = time_rounds(models, options.repeats)
    total = {name: [p + d for p, d in values] for name, values in seconds.items()}
    print("| model | prefill, ms | decode step, ms | over the stock parent | over the packed parent |")
    print("|---|---|---|---|---|")
    for name, values in seconds.items():
        prefill, decode = (statistics.median(v[i] for v in values) for i in (0, 1))
        over = []
        for reference in (STOCK, PACKED):
            pairs = zip(total[reference], total[name], strict=True)
            over.append("{:.3f} ± {:.3f}".format(*median_and_error([r / own for r, own in pairs])))
        print(f"| {name} | {1e3 * prefill:.0f} | {1e3 * decode / scenario.generate:.1f} | {' | '.join(over)} |")


if __name__ == "__main__":
    main()
