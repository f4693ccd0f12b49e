"""Pieces by replace-1 KL: initialized in closed form, and after block distillation, with the seconds of each.

After `make`: ``python tests/benchmarks/bench_pieces.py results/smollm2-cpu``. The pieces are made from the run's
distill split, or from another table of the corpus (``--distill FILE``, such as one of more tokens that `build_corpus`
wrote), and scored on the run's own score and held-out text: the mean over the layers of the KL in nats per token.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tangram.activations import StreamedActivations
from tangram.blocks import block_class, get_block
from tangram.blocks.moments import Moments
from tangram.blocks.pruning import refit
from tangram.blocks.width import channel_contribution
from tangram.config import BlockDistillation, Pruning
from tangram.corpus.tokens import read_tokens
from tangram.library.distill import LayerDistillation
from tangram.models.families import Shape, decoder_layers, subblock
from tangram.models.loading import load_model
from tangram.models.replace import replace_subblocks
from tangram.scores.replace_one import ReplaceOne

STRIDE = 4  # of scored positions
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Method:
    """A way to make a piece: its kind and variant, the name of its initialization, and the settings of pruning."""

    kind: str
    variant: str
    name: str
    pruning: Pruning


def methods(names: list[str], ridges: list[float], methods_of: tuple[str, ...]) -> list[Method]:
    """Return all ways to make the variants, or those whose names begin with a text of ``methods_of``."""
    found = []
    for name in names:
        kind, _, variant = name.rpartition("/")
        kind = kind or block_class(variant).kinds[0]
        if variant.startswith("width"):
            found.append(Method(kind, variant, "contribution", Pruning(selection="contribution")))
            found += [Method(kind, variant, f"contribution, refit, ridge {r:g}", Pruning(ridge=r)) for r in ridges]
        if variant.startswith(("width", "heads")):
            found += [Method(kind, variant, f"obs, ridge {r:g}", Pruning(ridge=r)) for r in ridges]
        else:
            found.append(Method(kind, variant, "closed form", Pruning()))
    if methods_of:
        found = [method for method in found if method.name.startswith(methods_of)]
    return found


def contribution_refit(parent: Any, moments: Moments, width: int, ridge: float) -> Tensors:
    """Return a narrower FFN of the channels of largest contribution, with the output matrix fitted anew."""
    channels = channel_contribution(parent, moments).topk(width).indices.sort().values
    weights = dict(parent.state_dict())
    fitted, _ = refit(moments, parent.down_proj.weight, None, channels, ridge)
    return {**{name: weights[name][channels] for name in ("gate_proj.weight", "up_proj.weight")}} | {
        "down_proj.weight": fitted
    }


class Layer:
    """One layer of the parent: its distillation and its scores on two texts."""

    def __init__(self, model: Any, index: int, states: Any, settings: BlockDistillation, scorers: list[ReplaceOne]):
        self.model, self.index, self.scorers = model, index, scorers
        self.problem = LayerDistillation(model, index, states.hidden(index), states.hidden(index + 1), settings)
        self.shape = Shape.of(model.config)
        self.moments: dict[str, Moments] = {}
        self.seconds: dict[str, float] = {}

    def measure(self, kind: str) -> None:
        """Measure the moments once."""
        if kind not in self.moments:
            _ = self.problem.middle
            begin = time.perf_counter()
            self.moments[kind] = self.problem.measure(kind)
            self.seconds[kind] = time.perf_counter() - begin

    def scores(self, method: Method, weights: Tensors) -> list[float]:
        """Return the KL on each text."""
        overrides = get_block(method.kind, method.variant, self.shape).overrides()
        parent = decoder_layers(self.model)[self.index]
        layer = replace_subblocks(parent, self.model.config, self.index, overrides, {method.kind: weights})
        rows = [scorer.score(self.index, layer) for scorer in self.scorers]
        return [float(next(r["value"] for r in of_text if r["metric"] == "kl")) for of_text in rows]

    @torch.no_grad()
    def initial(self, method: Method) -> tuple[Tensors, float]:
        """Return the initial weights and the seconds that they take, moments aside."""
        self.measure(method.kind)
        parent: Any = subblock(decoder_layers(self.model)[self.index], method.kind)
        block, moments = get_block(method.kind, method.variant, self.shape), self.moments[method.kind]
        self.problem.pruning = method.pruning
        calibration = self.problem.calibration(method.kind, moments)
        begin = time.perf_counter()
        if "refit" in method.name:
            width = block.overrides()["intermediate_size"]
            weights = contribution_refit(parent, moments, width, method.pruning.ridge)
        else:
            weights = block.initialize(parent, calibration)
        return weights, time.perf_counter() - begin

    def trained(self, method: Method, weights: Tensors) -> tuple[Tensors, float]:
        """Return the piece after block distillation from the given weights, and the seconds."""
        begin = time.perf_counter()
        piece = self.problem.train(method.kind, method.variant, weights, 0)
        return piece.weights, time.perf_counter() - begin


def splits(results: Path) -> Iterator[torch.Tensor]:
    """Yield the tokens of the score and the held-out split."""
    for name in ("score", "heldout"):
        yield read_tokens(results / "corpus" / f"{name}.parquet")


def table(rows: dict[tuple[str, str], list[list[float]]], train: bool) -> str:
    """Return the means over layers as Markdown."""
    head = ["variant", "initialization", "own", "held-out", "seconds"]
    head += ["own after BLD", "held-out after BLD", "seconds of BLD"] if train else []
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for (variant, name), values in rows.items():
        means = torch.tensor(values, dtype=torch.float64).mean(0).tolist()
        cells = [f"{value:.2f}" if i % 3 == 2 else f"{value:.4f}" for i, value in enumerate(means)]
        lines.append(f"| {variant} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--distill", type=Path, help="corpus table; default: the run's distill split")
    parser.add_argument("--layers", default="2,14,26")
    parser.add_argument("--variants", default="width-0.75,width-0.5,width-0.25,heads-6,heads-3,gqa-1,linear")
    parser.add_argument(
        "--methods", default="", help="beginnings of methods' names, such as obs,closed; all by default"
    )
    parser.add_argument("--ridge", default="0.1")
    parser.add_argument("--fit-ridge", type=float, default=BlockDistillation().ridge, help="of linear maps, at least")
    parser.add_argument("--normalize", default=BlockDistillation().normalize, choices=["tensor", "token"])
    parser.add_argument("--train", action="store_true", help="also after block distillation with the default settings")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = load_model(options.results / "parent", "float32", "cpu").requires_grad_(False)
    tokens = read_tokens(options.distill or options.results / "corpus" / "distill.parquet")
    settings = BlockDistillation(normalize=options.normalize, ridge=options.fit_ridge)
    scorers = [
        ReplaceOne(model, StreamedActivations(model, text, 4), text, STRIDE, 4) for text in splits(options.results)
    ]
    states, rows = StreamedActivations(model, tokens, 4), dict[tuple[str, str], list[list[float]]]()
    seconds: dict[str, list[float]] = {}
    named = tuple(filter(None, options.methods.split(",")))
    chosen = methods(options.variants.split(","), [float(r) for r in options.ridge.split(",")], named)
    for index in map(int, options.layers.split(",")):
        layer = Layer(model, index, states, settings, scorers)
        for method in chosen:
            weights, took = layer.initial(method)
            row = [*layer.scores(method, weights), took]
            if options.train and get_block(method.kind, method.variant, layer.shape).trainable:
                weights, took = layer.trained(method, weights)
                row += [*layer.scores(method, weights), took]
            elif options.train:
                row += row
            rows.setdefault((f"{method.kind} {method.variant}", method.name), []).append(row)
            print(f"layer {index} {method.variant} {method.name}: {row}", flush=True)
        for kind, value in layer.seconds.items():
            seconds.setdefault(kind, []).append(value)
    print(f"\n{tokens.numel()} tokens, layers {options.layers}, tokens weighted by {options.normalize}\n")
    print(table(rows, options.train))
    for kind, values in seconds.items():
        print(f"moments of {kind}: {sum(values) / len(values):.2f} s per layer")


if __name__ == "__main__":
    main()
