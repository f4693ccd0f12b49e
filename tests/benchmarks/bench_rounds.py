"""Children of one limit made in different numbers of rounds, with equal tokens: KL on held-out text, and time.

    python tests/benchmarks/bench_rounds.py RESULTS CONFIG

RESULTS is the folder of a run of CONFIG, whose targets differ in `rounds`. Differences are those to the first target,
paired by sequence of the held-out split, with one standard error.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from tangram.config import load
from tangram.tables import SAMPLES, read_table


def seconds(results: Path, rule: str, name: str) -> float:
    """Return the processor seconds of a job; 0 if it did not run."""
    path = results / "benchmarks" / rule / f"{name}.tsv"
    if not path.exists():
        return 0.0
    head, values = (line.split("\t") for line in path.read_text().splitlines()[:2])
    return float(dict(zip(head, values, strict=True))["cpu_time"])


def kl_of(folder: Path, model: str) -> np.ndarray:
    """Return a model's KL on every sequence of the held-out split."""
    table = read_table(folder / "sequences.parquet", SAMPLES)
    rows = table[(table["metric"] == "kl") & (table["model"] == model)]
    return rows.sort_values(["task", "sample"])["value"].to_numpy()


def main() -> None:
    """Print a row per target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("config")
    arguments = parser.parse_args()
    first = None
    for name, target in load(arguments.config).targets.items():
        folder = arguments.results / "targets" / name
        rounds = []
        if (path := folder / "rounds" / "solution.json").exists():
            rounds = json.loads(path.read_text())["rounds"]
        record = json.loads((folder / "0" / "finetuned" / "provenance.json").read_text())
        path_of_kl = [
            f"{each['kl_before']:.4f} > {each['kl_after']:.4f} ({each['kept']})" for each in (*rounds, record)
        ]
        tokens = sum(each["finetune_tokens"] for each in (*rounds, record))
        kl = kl_of(folder / "0", "finetuned")
        first = kl if first is None else first
        difference, error = (kl - first).mean(), (kl - first).std(ddof=1) / len(kl) ** 0.5
        time = seconds(arguments.results, "iterate_child", name) + seconds(
            arguments.results, "finetune_child", f"{name}/0"
        )
        print(
            f"{name}: {target.rounds} rounds, {tokens} tokens, held-out KL {kl.mean():.4f}, difference "
            f"{difference:+.4f} ± {error:.4f}, {time:.0f} s; score split by round: {', '.join(path_of_kl)}"
        )


if __name__ == "__main__":
    main()
