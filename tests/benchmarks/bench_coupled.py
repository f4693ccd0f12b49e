"""Print what coupled BLD gains over separately trained pieces: `bench_coupled.py results/smollm2-cpu --layers 4 14 24`.

For every layer and pair: the held-out normalized MSE and the KL of the layer with both separate pieces (twice as long
trained, too, so that the tokens are equal), with the pair trained from those pieces (two stages), and with the pair
trained from closed-form weights (full); and the sum of the KLs of both pieces. The run needs its parent, the distill
and score splits, and their activations.
"""

import argparse
from pathlib import Path

import torch

from tangram.activations import open_activations
from tangram.blocks import get_block
from tangram.blocks.architecture import LayerChoice, pieces_of
from tangram.config import load
from tangram.corpus.tokens import read_tokens
from tangram.library.coupled import distill_pair
from tangram.library.distill import LayerDistillation, Piece
from tangram.models.families import SUBBLOCK_NAMES, Shape
from tangram.models.loading import load_model
from tangram.scores.replace_one import ReplaceOne


def by_kind(piece: Piece) -> dict[str, dict[str, torch.Tensor]]:
    """Return a pair's tensors by kind and name in the subblock."""
    return {
        kind: {name.removeprefix(f"{sub}."): t for name, t in piece.weights.items() if name.startswith(f"{sub}.")}
        for kind, sub in SUBBLOCK_NAMES.items()
    }


def best_loss(piece: Piece) -> float:
    """Return the held-out loss of the stored weights."""
    return piece.loss_before if piece.loss_after is None else min(piece.loss_before, piece.loss_after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--config", type=Path, default=Path("config/config.yaml"))
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 14, 24])
    parser.add_argument("--pairs", nargs="+", default=["gqa-1+width-0.5", "no-op+width-0.5"])
    arguments = parser.parse_args()
    config = load(arguments.config)
    bld, scores, results = config.library.bld, config.scores, arguments.results
    model = load_model(results / "parent", "float32", "cpu").requires_grad_(False)
    texts = {split: read_tokens(results / "corpus" / f"{split}.parquet") for split in ("distill", "score")}
    states = {
        split: open_activations(results / "activations" / f"{split}.npy", model, tokens, bld.batch_size)
        for split, tokens in texts.items()
    }
    scorer = ReplaceOne(model, states["score"], texts["score"], scores.position_stride, scores.batch_size)
    shape = Shape.of(model.config)

    def kl(rows: list) -> float:
        return next(row["value"] for row in rows if row["metric"] == "kl")

    print(f"{texts['distill'].numel()} distill tokens, {bld.epochs} epochs, rate {bld.learning_rate:g}")
    print(
        f"{'layer':5} {'pair':18} {'measure':8} {'separate':>9} {'separate x2':>11} {'two stages':>10} {'full':>9} sum"
    )
    for layer in arguments.layers:
        hidden = states["distill"].hidden(layer), states["distill"].hidden(layer + 1)
        long = bld.model_copy(update={"epochs": 2 * bld.epochs})
        problem, longer = (LayerDistillation(model, layer, *hidden, settings) for settings in (bld, long))
        for pair in arguments.pairs:
            choice = LayerChoice.parse(pair)
            separate = {kind: problem.distill(kind, name, 0).weights for kind, name in pieces_of(choice)}
            twice = {kind: longer.distill(kind, name, 0).weights for kind, name in pieces_of(choice)}
            trained = [distill_pair(problem, choice, 0, separate), distill_pair(problem, choice, 0)]
            untrained = LayerDistillation(model, layer, *hidden, bld.model_copy(update={"epochs": 0}))
            losses = [trained[0].loss_before, distill_pair(untrained, choice, 0, twice).loss_before]
            losses += map(best_loss, trained)
            values = [kl(scorer.score_pair(layer, choice, w)) for w in (separate, twice, *map(by_kind, trained))]
            blocks = [get_block(kind, name, shape) for kind, name in pieces_of(choice)]
            total = sum(kl(scorer.score_piece(layer, block, separate[block.kind])) for block in blocks)
            for name, row, note in (("MSE", losses, ""), ("KL", values, f"{total:.4f}")):
                cells = "".join(f"{value:>{width}.4f}" for value, width in zip(row, (10, 12, 11, 10), strict=True))
                print(f"{layer:<5} {pair:18} {name:8}{cells} {note}", flush=True)


if __name__ == "__main__":
    main()
