"""What kernels and precisions give a whole model, and an LM head: ratios within one run, round-robin.

Run on an idle machine, after `make`: ``python tests/benchmarks/bench_precision.py results/smollm2-cpu``.

The first table times the parent (weights at random) as stock transformers runs it, with packed kernels, and uniformly
in each precision. The second table compares LM heads: the run's `parent@bf16` and `parent@int8`, and heads of low rank
that are exact for the 64 tokens that they prefer, by KL to the parent's head on the held-out split and by seconds.
"""

import argparse
import statistics
from pathlib import Path

import torch
from torch import nn

from tangram.activations import open_activations
from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.config import Scenario
from tangram.corpus.tokens import read_tokens
from tangram.costs.passes import Passes, mean_length_passes, time_passes
from tangram.costs.torch_engine import random_model
from tangram.library.pieces import read_piece
from tangram.models.loading import load_model
from tangram.models.packed import PackedLinear, pack
from tangram.models.replace import replace_head
from tangram.timing import interleaved, median_and_error

EXACT = 64  # tokens of a low-rank head that are scored again
RANKS = (64, 128, 256)


class LowRankHead(nn.Module):
    """Scores of rank R in the metric of the hidden states, and exact scores for the tokens that they prefer."""

    def __init__(self, weight: torch.Tensor, moment: torch.Tensor, rank: int):
        super().__init__()
        root = torch.linalg.cholesky(moment)
        right = torch.linalg.svd(weight.double() @ root, full_matrices=False).Vh[:rank]
        self.weight = weight
        self.up = (weight.double() @ root @ right.T).float()
        self.down = (right @ torch.linalg.inv(root)).float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., hidden)`` to logits ``(..., vocabulary)``."""
        logits = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        best = logits.topk(EXACT).indices
        return logits.scatter(-1, best, (self.weight[best] @ x[..., None]).squeeze(-1))


def whole_models(parent: Path, scenario: Scenario, batch: int, repeats: int) -> None:
    """Print seconds of prefill and decode step, and speed relative to the stock and to the packed parent."""
    layers = load_model(parent).config.num_hidden_layers

    def uniform(attention: str, ffn: str, head: str) -> Architecture:
        return Architecture((LayerChoice(attention, ffn),) * layers, head)

    plain = uniform("parent", "parent", "parent")
    models = {"stock parent": random_model(parent, plain, "float32", "cpu")}
    for name, architecture in {
        "packed parent": plain,
        "bf16": uniform("parent@bf16", "parent@bf16", "parent@bf16"),
        "int8, head bf16": uniform("parent@int8", "parent@int8", "parent@bf16"),
        "int8": uniform("parent@int8", "parent@int8", "parent@int8"),
    }.items():
        models[name] = pack(random_model(parent, architecture, "float32", "cpu"))
    passes = {name: mean_length_passes(Passes.of_model, model, scenario, batch) for name, model in models.items()}
    samples = time_passes(passes, repeats, "cpu")
    print(f"| model, batch {batch} | prefill, ms | decode step, ms | over stock | over packed |\n|---|---|---|---|---|")
    rounds = {
        name: [
            p + scenario.generate * d for p, d in zip(samples["prefill"][name], samples["decode"][name], strict=True)
        ]
        for name in models
    }
    for name in models:
        ratios = []
        for reference in ("stock parent", "packed parent"):
            pairs = zip(rounds[reference], rounds[name], strict=True)
            ratios.append("{:.2f} ± {:.2f}".format(*median_and_error([r / v for r, v in pairs])))
        prefill, decode = (1e3 * statistics.median(samples[phase][name]) for phase in ("prefill", "decode"))
        print(f"| {name} | {prefill:.0f} | {decode:.1f} | {' | '.join(ratios)} |")


@torch.inference_mode()
def heads(results: Path, batch: int, repeats: int) -> None:
    """Print KL to the parent's head and seconds of a decode step of every head."""
    model = load_model(results / "parent")
    states = []
    for split in ("distill", "heldout"):
        tokens = read_tokens(results / "corpus" / f"{split}.parquet")
        hidden = open_activations(results / "activations" / f"{split}.npy", model, tokens, 1).hidden(
            model.config.num_hidden_layers
        )
        states.append(model.model.norm(hidden).flatten(0, 1))
    fitted, held_out = states[0], states[1][::4]
    moment = (fitted.double().T @ fitted.double()) / len(fitted)
    moment += 1e-3 * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    named: dict[str, nn.Module] = {"parent, stock": model.lm_head, "parent": PackedLinear([model.lm_head])}
    for precision in ("bf16", "int8"):
        shard = results / "library" / "head" / f"parent@{precision}" / "00-00.safetensors"
        named[precision] = PackedLinear([replace_head(model.lm_head, precision, read_piece(shard, 0, "head"))])
    for rank in RANKS:
        named[f"rank {rank}, {EXACT} exact"] = LowRankHead(model.lm_head.weight, moment, rank)
    last = held_out[:batch]
    samples = interleaved({name: lambda head=head: head(last) for name, head in named.items()}, repeats)
    target = model.lm_head(held_out).log_softmax(-1)
    print("\n| head | KL, nats/token | ms |\n|---|---|---|")
    for name, head in named.items():
        kl = (target.exp() * (target - head(held_out).log_softmax(-1))).sum(-1).mean().item()
        print(f"| {name} | {kl:.4f} | {1e3 * statistics.median(samples[name]):.2f} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    scenario = Scenario(prefill=128, generate=32, batch_sizes=(arguments.batch,))
    whole_models(arguments.results / "parent", scenario, arguments.batch, arguments.repeats)
    heads(arguments.results, arguments.batch, arguments.repeats)


if __name__ == "__main__":
    main()
