"""Children that have one piece in the layers where it costs least: sum of scores beside the true KL on held-out text.

``python tests/benchmarks/bench_one_piece.py results/mine --variants window-256,heads-6 --layers 10,20,30``, after
``snakemake collect_scores``. Children are not finetuned; KL in nats per token, at every fourth position.
"""

import argparse
from pathlib import Path

import torch

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.cli import Runtime
from tangram.config import Scores
from tangram.tables import SCORES, read_table
from tangram_studies.search_fidelity import texts_of


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--variants", default="window-64,window-256,heads-6", help="of attention")
    parser.add_argument("--layers", default="10,20,30", help="numbers of layers that have the piece")
    parser.add_argument("--sequences", type=int, default=2, help="held-out sequences")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scores = read_table(options.results / "scores.parquet", SCORES)
    scores = scores[(scores["kind"] == "attention") & (scores["metric"] == "kl")]
    layers = sorted(set(scores["layer"]))
    text = texts_of(options.results, Scores(batch_size=1), options.sequences, Runtime())["heldout"]
    print("| layers | piece | sum of scores | KL | KL by sequence |\n|---|---|---|---|---|")
    for count in map(int, options.layers.split(",")):
        for variant in options.variants.split(","):
            smallest = scores[scores["variant"] == variant].nsmallest(count, "value")
            chosen = set(smallest["layer"])
            child = Architecture(
                tuple(LayerChoice(attention=variant) if i in chosen else LayerChoice() for i in layers)
            )
            values = text.look([child])[0]
            each = ", ".join(f"{value:.3f}" for value in values)
            print(
                f"| {count} | `{variant}` | {smallest['value'].sum():.3f} | {values.mean():.3f} | {each} |", flush=True
            )


if __name__ == "__main__":
    main()
