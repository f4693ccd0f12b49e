"""Whole layers dropped in two orders: by the sum of both no-ops' scores, and by the score of the whole layer.

    python tests/benchmarks/bench_layer_order.py results/smollm2-cpu --counts 1,2,3,5

The run's folder holds `scores.parquet` and `scores/layers/`. The KL of the parent without these layers is that of the
held-out text at every position, in nats per token; differences are paired by sequence.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from tangram.corpus.tokens import read_tokens
from tangram.metrics import compare
from tangram.models.families import decoder_layers
from tangram.models.loading import load_model
from tangram.search.drop_layers import joint_importance
from tangram.tables import SCORES, read_table


def orders(run: Path, layers: int) -> dict[str, list[int]]:
    """Return the layers from the least important one, by the name of the order."""
    scores = read_table(run / "scores.parquet", SCORES)
    no_ops = scores[(scores["variant"] == "no-op") & (scores["metric"] == "kl")]
    sums = no_ops.groupby("layer")["value"].sum()
    tables = [read_table(path, SCORES) for path in sorted((run / "scores" / "layers").glob("*.parquet"))]
    joint = joint_importance(pd.concat(tables, ignore_index=True), "kl", layers)
    return {"sum": sorted(range(layers), key=sums.__getitem__), "joint": sorted(range(layers), key=joint.__getitem__)}


@torch.inference_mode()
def by_sequence(parent: Any, gone: tuple[int, ...], tokens: torch.Tensor) -> torch.Tensor:
    """Return the KL of each sequence, ``(sequences,)``."""
    layers = decoder_layers(parent)
    shared = {id(weight): weight for weight in parent.parameters()}
    child = copy.deepcopy(parent, shared)
    child.model.layers = nn.ModuleList(layer for index, layer in enumerate(layers) if index not in gone)
    values = []
    for part in tokens.split(1):
        logits = [model(part, use_cache=False).logits[0, :-1] for model in (child, parent)]
        values.append(compare(*logits, part[0, 1:])["kl"].mean())
    return torch.stack(values)


def main() -> None:
    """Print a row for each number of layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--counts", default="1,2,3,5")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parent = load_model(options.run / "parent").requires_grad_(False)
    tokens = read_tokens(options.run / "corpus" / "heldout.parquet")
    ordered, known = orders(options.run, len(decoder_layers(parent))), dict[tuple[int, ...], torch.Tensor]()
    print(f"from the least important layer: {ordered}", flush=True)
    for count in map(int, options.counts.split(",")):
        dropped = {name: tuple(sorted(layers[:count])) for name, layers in ordered.items()}
        for gone in dropped.values():
            if gone not in known:
                known[gone] = by_sequence(parent, gone, tokens)
        kl = {name: known[gone] for name, gone in dropped.items()}
        cells = [f"{name} {gone}: {kl[name].mean():.4f}" for name, gone in dropped.items()]
        difference = (kl["joint"] - kl["sum"]).double()
        error = difference.std() / len(difference) ** 0.5
        print(f"{count}: {'; '.join(cells)}; difference {difference.mean():+.4f} ± {error:.4f}", flush=True)


if __name__ == "__main__":
    main()
