"""Children that have one piece in the layers where it costs least: sum of scores beside the true KL on held-out text.

``python tests/benchmarks/bench_one_piece.py results/mine --variants window-256,heads-6 --layers 10,20,30``, after
``snakemake collect_scores``. Children are not finetuned; KL in nats per token, at every fourth position.
"""

import argparse
from pathlib import Path

import torch

from tangram.activations import open_activations
from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.corpus.tokens import read_tokens
from tangram.library.pieces import read_library
from tangram.models.families import Shape
from tangram.models.loading import load_model
from tangram.selection.assembled import AssembledScores
from tangram.tables import SCORES, read_table

STRIDE = 4  # of scored positions


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
    shards = tuple(sorted({path.stem for path in (options.results / "library").glob("[af]*/*/*.safetensors")}))
    model = load_model(str(options.results / "parent"), "float32", "cpu")
    tokens = read_tokens(options.results / "corpus" / "heldout.parquet")[: options.sequences]
    library = read_library(options.results / "library", shards)
    truth = AssembledScores(model, open_activations(None, model, tokens, 1), tokens, library, 1, STRIDE)
    print("| layers | piece | sum of scores | KL | KL by sequence |\n|---|---|---|---|---|")
    for count in map(int, options.layers.split(",")):
        for variant in options.variants.split(","):
            smallest = scores[scores["variant"] == variant].nsmallest(count, "value")
            chosen = set(smallest["layer"])
            layers = range(Shape.of(model.config).num_layers)
            child = Architecture(
                tuple(LayerChoice(attention=variant) if i in chosen else LayerChoice() for i in layers)
            )
            values = truth.look([child], range(len(tokens)))[0]
            each = ", ".join(f"{value:.3f}" for value in values)
            print(
                f"| {count} | `{variant}` | {smallest['value'].sum():.3f} | {values.mean():.3f} | {each} |", flush=True
            )


if __name__ == "__main__":
    main()
