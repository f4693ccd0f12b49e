"""Constants against no-ops, and ways to merge KV heads: KL of the parent with one subblock replaced, in nats per token.

After `make`: ``python tests/benchmarks/bench_closed_forms.py results/smollm2-cpu --layers 2,8,14,20,26``.

The KL is that of the run's held-out text, at every position. Pieces are made from the run's distill split, or from
another one (`--text`, which `build_corpus` writes); `--epochs` trains those of attention as `library.bld` does.
"""

import argparse
from pathlib import Path

from tangram.activations import StreamedActivations, open_activations
from tangram.blocks import KINDS, block_class, get_block
from tangram.config import BlockDistillation
from tangram.corpus.tokens import read_tokens
from tangram.library.distill import LayerDistillation
from tangram.models.families import Shape, decoder_layers
from tangram.models.loading import load_model
from tangram.models.replace import replace_subblocks
from tangram.scores.replace_one import ReplaceOne

VARIANTS = "no-op,constant,gqa-mean-1,gqa-1"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--layers", default="2,8,14,20,26")
    parser.add_argument("--text", help="another split of the parent's text (parquet)", type=Path)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--normalize", default="tensor", choices=("tensor", "token"))
    parser.add_argument("--ridge", type=float, default=1e-3)
    parser.add_argument("--variants", default=VARIANTS)
    arguments = parser.parse_args()
    model = load_model(arguments.run / "parent").requires_grad_(False)
    shape, heldout = Shape.of(model.config), read_tokens(arguments.run / "corpus" / "heldout.parquet")
    cached = arguments.run / "activations" / "heldout.npy"
    states_of_heldout = open_activations(cached if cached.is_file() else None, model, heldout, 4)
    score = ReplaceOne(model, states_of_heldout, heldout, 1, 4)
    text = read_tokens(arguments.text or arguments.run / "corpus" / "distill.parquet")
    states = StreamedActivations(model, text, 4)
    settings = BlockDistillation(epochs=arguments.epochs, normalize=arguments.normalize, ridge=arguments.ridge)
    print(f"{text.numel()} tokens, {arguments}")
    for layer in map(int, arguments.layers.split(",")):
        inputs, outputs = states.hidden(layer), states.hidden(layer + 1)
        problem = LayerDistillation(model, layer, inputs, outputs, settings)
        for kind in KINDS:
            for variant in arguments.variants.split(","):
                if kind not in block_class(variant).kinds:
                    continue
                piece = problem.distill(kind, variant, 0)
                overrides, parent = get_block(kind, variant, shape).overrides(), decoder_layers(model)[layer]
                replaced = replace_subblocks(parent, model.config, layer, overrides, {kind: piece.weights})
                kl = next(row for row in score.score(layer, replaced) if row["metric"] == "kl")
                print(
                    f"{layer:2} {kind:9} {variant:12} KL {kl['value']:.4f} ± {kl['standard_error']:.4f}  "
                    f"local {piece.loss_before:.4f} {piece.loss_after} {piece.kept} {piece.seconds:.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
