"""What some pieces of a finished run give its children: the solver with and without them, and true KL.

    python tests/benchmarks/bench_frontier.py CONFIG RESULTS --without 'heads|width' --speeds 1.6 1.8 2.0

CONFIG is the run's config and RESULTS its folder. For each speed, over the packed parent in the config's first
scenario, prints the KL of both children before finetuning on the held-out split, and their difference, paired by
sequence. Speeds are predictions.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path

import numpy as np

from tangram.activations import StreamedActivations
from tangram.blocks.architecture import Architecture
from tangram.config import Config, load
from tangram.corpus.tokens import read_tokens
from tangram.library.pieces import read_library
from tangram.models.loading import load_model
from tangram.search.problem import Settings, load_problem
from tangram.search.solve import solve
from tangram.selection.assembled import AssembledScores
from tangram.tables import SCORES, read_table, write_table


def chosen(config: Config, results: Path, scores: Path, speed: float) -> Architecture:
    """Return the solver's child at one speed."""
    limit = {"quantity": "throughput", "min": speed, "scenario": next(iter(config.scenarios)), "reference": "packed"}
    settings = {
        "target": {"constraints": [limit]},
        "search": config.search.model_dump(mode="json"),
        "scenarios": {name: scenario.model_dump(mode="json") for name, scenario in config.scenarios.items()},
    }
    tables = (scores, results / "costs" / "torch.parquet", results / "calibration" / "torch.parquet")
    problem = load_problem(Settings.model_validate_json(json.dumps(settings)), *tables, results / "parent")
    return solve(problem, config.search)[0].architecture


def mean(values: np.ndarray) -> str:
    """Return a mean with its standard error."""
    return f"{values.mean():.4f} ± {values.std(ddof=1) / len(values) ** 0.5:.4f}"


def main() -> None:
    """Print a row per speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("results", type=Path)
    parser.add_argument("--without", required=True, help="regular expression of the variants that are left out")
    parser.add_argument("--speeds", nargs="+", type=float, default=[1.6, 1.7, 1.8, 1.9, 2.0, 2.2])
    parser.add_argument("--position-stride", type=int, default=4)
    arguments = parser.parse_args()
    config, results = load(arguments.config), arguments.results
    table = read_table(results / "scores.parquet", SCORES)
    with tempfile.TemporaryDirectory() as folder:
        fewer = Path(folder) / "scores.parquet"
        kept = [not re.search(arguments.without, variant) for variant in table["variant"]]
        write_table(table[kept].to_dict("records"), SCORES, fewer, {})
        pairs = [
            (chosen(config, results, fewer, speed), chosen(config, results, results / "scores.parquet", speed))
            for speed in arguments.speeds
        ]
    parent = load_model(results / "parent").requires_grad_(False)
    text = read_tokens(results / "corpus" / "heldout.parquet")
    shards = sorted({path.stem for path in (results / "library" / "attention").glob("*/*.safetensors")})
    library = read_library(results / "library", tuple(shards))
    scored = AssembledScores(parent, StreamedActivations(parent, text, 4), text, library, 4, arguments.position_stride)
    kl = scored.look([architecture for pair in pairs for architecture in pair]).reshape(len(pairs), 2, -1)
    for speed, (without, whole) in zip(arguments.speeds, kl, strict=True):
        print(f"{speed:g}: without {mean(without)}, with {mean(whole)}, difference {mean(whole - without)}")


if __name__ == "__main__":
    main()
