"""Solutions of other objectives than the KL, at many targets of one finished run: true KL on held-out text.

``python tests/benchmarks/bench_objective.py config/config.yaml results/smollm2-cpu``. Children are not finetuned; KL in
nats per token, at every fourth position. Differences are those of logarithms, beside the child of the sum of KL.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from tangram.cli import Runtime
from tangram.config import Search, Target, load
from tangram.search.problem import Settings, load_problem
from tangram.search.solve import solve
from tangram_studies.search_fidelity import texts_of

OBJECTIVES: dict[str, str | dict[str, float]] = {
    "KL": "kl",
    "cosine": "cosine_distance",
    "10 cosine + KL": {"cosine_distance": 10.0, "kl": 1.0},
}


def main() -> None:
    """Print a table of all targets, and the mean relative difference per range of targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="the finished run's")
    parser.add_argument("results", type=Path)
    parser.add_argument("--speeds", type=float, nargs=3, default=(1.55, 2.1, 0.025), help="first, last and step")
    parser.add_argument("--sequences", type=int, default=16, help="held-out sequences")
    options = parser.parse_args()
    config, runtime = load(options.config), Runtime(threads=2)
    runtime.start()
    text = texts_of(options.results, config.scores, options.sequences, runtime)["heldout"]
    tables = [options.results / name for name in ("scores.parquet", "costs/torch.parquet", "calibration/torch.parquet")]
    limit = {"quantity": "throughput", "scenario": next(iter(config.scenarios)), "reference": "packed"}
    first, last, step = options.speeds
    rows = {}
    print(f"| speed | {' | '.join(OBJECTIVES)} |\n|---|{'---|' * len(OBJECTIVES)}")
    for speed in np.arange(first, last + step / 2, step).round(6).tolist():
        children = []
        for objective in OBJECTIVES.values():
            target = Target.model_validate({"constraints": [limit | {"min": speed}], "objective": objective})
            settings = Settings(target=target, search=Search(time_limit=600), scenarios=config.scenarios)
            problem = load_problem(settings, *tables, options.results / "parent")
            children.append(solve(problem, settings.search)[0].architecture)
        rows[speed] = text.look(children).mean(1)
        print(f"| {speed:g} | {' | '.join(f'{value:.4f}' for value in rows[speed])} |", flush=True)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(OBJECTIVES))
    relative = np.log(table.div(table["KL"], axis=0)).drop(columns="KL")
    thirds = pd.Series(np.arange(len(relative)) * 3 // len(relative), index=relative.index)
    print(f"\n| speeds | {' | '.join(relative)} |\n|---|{'---|' * len(relative.columns)}")
    for _, part in [*relative.groupby(thirds), ("all", relative)]:
        cells = [
            f"{mean:+.1%}, smaller in {smaller}" for mean, smaller in zip(part.mean(), (part < 0).sum(), strict=True)
        ]
        print(f"| {part.index[0]:g} to {part.index[-1]:g}, {len(part)} targets | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
