"""Refit of the output projections of a child to the parent's hidden states, on the child's own activations.

After `make`: ``python tests/benchmarks/bench_refit.py results/smollm2-cpu --tokens 3072,6144 --ridges 0.1,0.3,1,3``.

A child lacks the subblocks whose removal has the smallest scores (`--removed`), and its last FFNs may be narrow
(`--narrow`, untrained `width-0.5`). Layer by layer, `o_proj` and `down_proj` of the subblocks that remain get the
weights of smallest ``E|h - r - W x|^2 / |h|^2 + ridge E|x|^2 |W - W_0|^2``: h is the parent's residual stream behind
the subblock (`all`), or behind the removed subblocks that follow it (`ahead`); r is the child's before it, x the
child's inputs of the matrix, and W_0 its weights. With `previous`, only the subblocks before removed ones are refitted
(as in ReplaceMe, arXiv 2505.02819). The KL is that of the held-out text, in nats per token, at every position.
With `--finetune`, the child and its refitted copies are then finetuned on so many other tokens of the finetune split.
"""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tangram.activations import StreamedActivations
from tangram.config import Finetune
from tangram.corpus.tokens import read_tokens
from tangram.finetune import finetune
from tangram.metrics import compare, standard_error_by_sequence
from tangram.models.forward import layer_contexts
from tangram.models.loading import load_model
from tangram.tables import SCORES, read_table

BATCH = 4
Subblock = tuple[int, str]
States = list[torch.Tensor]
Fit = tuple[float, str]  # ridge and mode


def cheapest(run: Path, removed: int) -> list[Subblock]:
    """Return the subblocks whose no-ops have the smallest scores."""
    scores = read_table(run / "scores.parquet", SCORES)
    rows = scores[(scores["variant"] == "no-op") & (scores["metric"] == "kl")].nsmallest(removed, "value")
    return [(int(row.layer), str(row.kind)) for row in rows.itertuples()]


def last_matrix(model: Any, index: int, kind: str) -> Any:
    """Return a subblock's last matrix."""
    layer = model.model.layers[index]
    return layer.self_attn.o_proj if kind == "attention" else layer.mlp.down_proj


def child_of(parent: Any, removed: list[Subblock], narrow: list[int]) -> Any:
    """Return the parent without some subblocks, and with half of the channels in some FFNs."""
    child = copy.deepcopy(parent)
    for subblock in removed:
        last_matrix(child, *subblock).weight.data.zero_()
    for layer in narrow:
        mlp = child.model.layers[layer].mlp
        size = mlp.up_proj.weight.norm(dim=1) * mlp.gate_proj.weight.norm(dim=1) * mlp.down_proj.weight.norm(dim=0)
        channels = size.topk(len(size) // 2).indices.sort().values
        for name in ("gate_proj", "up_proj"):
            getattr(mlp, name).weight = nn.Parameter(getattr(mlp, name).weight[channels], requires_grad=False)
        mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, channels], requires_grad=False)
    return child


class Walk:
    """The residual stream of a model on a text, one subblock at a time."""

    def __init__(self, model: Any, tokens: torch.Tensor):
        self.model, self.stream = model, list(model.model.embed_tokens(tokens).split(BATCH))
        self.context = layer_contexts(model, self.stream[0][:1])[0]

    def inputs(self, index: int, kind: str) -> Iterator[torch.Tensor]:
        """Yield the inputs of the subblock's last matrix."""
        layer, captured = self.model.model.layers[index], list[torch.Tensor]()
        hook = last_matrix(self.model, index, kind).register_forward_pre_hook(lambda _, args: captured.append(args[0]))
        for hidden in self.stream:
            if kind == "attention":
                layer.self_attn(hidden_states=layer.input_layernorm(hidden), **self.context)
            else:
                layer.mlp(layer.post_attention_layernorm(hidden))
            yield captured.pop()
        hook.remove()

    def add(self, outputs: list[torch.Tensor]) -> None:
        """Add a subblock's outputs to the stream."""
        self.stream = [hidden + output for hidden, output in zip(self.stream, outputs, strict=True)]


def refit(weight: torch.Tensor, inputs: States, targets: States, goal: States, ridge: float) -> torch.Tensor:
    """Return the ridge solution; errors count relative to a token's residual stream, as the next norm divides by it.

    Args:
        weight: W_0, ``(hidden, in)``.
        inputs: ``(sequences, length, in)``, in batches.
        targets: of the outputs, ``(sequences, length, hidden)``, in batches.
        goal: the parent's residual stream, likewise.
        ridge: relative to the mean squared input.
    """
    width = weight.shape[1]
    gram, crossed = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, len(weight), dtype=torch.float64)
    for x, target, stream in zip(inputs, targets, goal, strict=True):
        flat, error = x.flatten(0, 1), (target - x @ weight.T).flatten(0, 1)
        w = 1 / stream.square().mean(-1).flatten()[:, None]
        gram += (flat.T @ (flat * w)).double()
        crossed += (flat.T @ (error * w)).double()
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    return weight + torch.linalg.solve(gram, crossed).T.float()


def runs(layers: int, removed: list[Subblock]) -> list[list[Subblock]]:
    """Return the subblocks in order, each of those that remain in one list with the removed ones behind it."""
    grouped: list[list[Subblock]] = []
    for subblock in ((index, kind) for index in range(layers) for kind in ("attention", "ffn")):
        if subblock in removed and grouped:
            grouped[-1].append(subblock)
        else:
            grouped.append([subblock])
    return grouped


def sharing(model: Any) -> Any:
    """Return a copy of a model that shares its weights."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


@torch.inference_mode()
def refitted(parent: Any, child: Any, removed: list[Subblock], tokens: torch.Tensor, fits: list[Fit]) -> list[Any]:
    """Return a refitted copy of the child for every ridge and mode, from one walk through the parent."""
    children = [sharing(child) for _ in fits]
    of_parent, walks, differs = Walk(parent, tokens), [Walk(one, tokens) for one in children], [False] * len(fits)
    for subblock, *gone in runs(len(parent.model.layers), removed):
        original = last_matrix(parent, *subblock)
        x_parent = list(of_parent.inputs(*subblock))
        of_parent.add([x @ original.weight.T for x in x_parent])
        behind = of_parent.stream
        for one in gone:
            of_parent.add([x @ last_matrix(parent, *one).weight.T for x in of_parent.inputs(*one)])
        for i, ((ridge, mode), walk) in enumerate(zip(fits, walks, strict=True)):
            matrix, inputs, goal = last_matrix(children[i], *subblock), x_parent, of_parent.stream
            if differs[i] or matrix.weight.shape != original.weight.shape:
                inputs, differs[i] = list(walk.inputs(*subblock)), True
            if mode == "all":
                goal = behind
            if (gone and mode != "all") or (differs[i] and mode != "previous"):
                targets = [h - r for h, r in zip(goal, walk.stream, strict=True)]
                matrix.weight = nn.Parameter(refit(matrix.weight, inputs, targets, goal, ridge), requires_grad=False)
                differs[i] = True
            differs[i] |= bool(gone)
            walk.add([x @ matrix.weight.T for x in inputs])
    return children


def finetuned(child: Any, parent: Any, removed: list[Subblock], tokens: torch.Tensor, rate: float) -> Any:
    """Return a finetuned copy of a child; what was removed stays so."""
    copied = copy.deepcopy(child).requires_grad_(True)
    for subblock in removed:
        last_matrix(copied, *subblock).weight.register_hook(torch.zeros_like)
    settings = Finetune(budget={"tokens": tokens.numel()}, learning_rate=rate, compute="bfloat16")
    finetune(copied, parent, StreamedActivations(parent, tokens, BATCH), tokens, settings, seed=0)
    return copied


class Divergence:
    """KL of children to the parent on a text."""

    @torch.inference_mode()
    def __init__(self, parent: Any, tokens: torch.Tensor):
        self.parts = [(part, self.logits(parent, part)) for part in tokens.split(1)]

    @staticmethod
    def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of every position with a next token."""
        return model(tokens).logits[:, :-1].flatten(0, 1)

    @torch.inference_mode()
    def of(self, child: Any) -> str:
        """Return the mean KL and its standard error over sequences."""
        values = [compare(self.logits(child, x), logits, x[:, 1:].flatten())["kl"] for x, logits in self.parts]
        kl, error = standard_error_by_sequence(torch.stack(values))
        return f"KL {kl:.4f} ± {error:.4f}"


def main() -> None:
    """Print a row for every child, number of tokens and ridge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--text", help="a further split of the corpus (parquet)", default="")
    parser.add_argument("--removed", default="3,6")
    parser.add_argument("--narrow", type=int, default=0)
    parser.add_argument("--tokens", default="3072,6144")
    parser.add_argument("--ridges", default="0.1,0.3,1,3")
    parser.add_argument("--modes", default="all")
    parser.add_argument("--finetune", type=int, default=0, metavar="TOKENS")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate of --finetune")
    arguments = parser.parse_args()
    parent = load_model(arguments.run / "parent").requires_grad_(False)
    corpus = arguments.run / "corpus"
    paths = [corpus / "distill.parquet", corpus / "finetune.parquet", *filter(None, [arguments.text])]
    text, heldout = torch.cat([read_tokens(path) for path in paths]), read_tokens(corpus / "heldout.parquet")
    divergence = Divergence(parent, heldout)
    fits = [(r, m) for m in arguments.modes.split(",") for r in map(float, arguments.ridges.split(","))]
    for removed in map(int, arguments.removed.split(",")):
        gone = cheapest(arguments.run, removed)
        child = child_of(parent, gone, list(range(20, 20 + arguments.narrow)))
        print(f"without {gone}, {arguments.narrow} narrow FFNs: {divergence.of(child)}", flush=True)
        fresh = text[len(text) - arguments.finetune // text.shape[1] :]

        def finish(child: Any, name: str, gone: list[Subblock] = gone, fresh: torch.Tensor = fresh) -> None:
            if len(fresh):
                trained = finetuned(child, parent, gone, fresh, arguments.rate)
                print(f"    {name}, finetuned on {fresh.numel()} tokens: {divergence.of(trained)}", flush=True)

        finish(child, "no refit")
        for tokens in map(int, arguments.tokens.split(",")):
            children = refitted(parent, child, gone, text[: tokens // text.shape[1]], fits)
            for (ridge, mode), fitted in zip(fits, children, strict=True):
                print(f"  {tokens} tokens, ridge {ridge:g}, {mode}: {divergence.of(fitted)}", flush=True)
                finish(fitted, "refit")


if __name__ == "__main__":
    main()
