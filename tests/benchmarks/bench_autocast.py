"""BLD and GKD with `compute` float32 and bfloat16: processor seconds and losses, round-robin.

Run after `make`: ``python tests/benchmarks/bench_autocast.py results/smollm2-cpu``.

Weights, optimizer and held-out losses are float32 in both. Seconds are the process's own, on one thread, so that other
processes change them little.
"""

import argparse
import time
from pathlib import Path

import torch

from tangram.activations import open_activations
from tangram.config import BlockDistillation, Finetune
from tangram.corpus.tokens import read_tokens
from tangram.finetune import TextKL, finetune
from tangram.library.distill import LayerDistillation
from tangram.models.loading import load_model

COMPUTE = ("float32", "bfloat16")


def block_distillation(run: Path, kind: str, variant: str, layers: list[int]) -> None:
    """Print processor seconds and held-out losses of one variant, by layer and summed."""
    model = load_model(run / "parent").requires_grad_(False)
    tokens, settings = read_tokens(run / "corpus/distill.parquet"), BlockDistillation()
    states = open_activations(run / "activations/distill.npy", model, tokens, settings.batch_size)
    seconds, losses, steps = dict.fromkeys(COMPUTE, 0.0), dict.fromkeys(COMPUTE, 0.0), 0
    for layer in layers:
        problem = LayerDistillation(model, layer, states.hidden(layer), states.hidden(layer + 1), settings, tokens)
        problem.middle  # noqa: B018 - computed once for both
        line = f"layer {layer:2}"
        for name in COMPUTE:
            problem.settings = settings.model_copy(update={"compute": name})
            begin = time.process_time()
            piece = problem.distill(kind, variant, seed=0)
            seconds[name] += time.process_time() - begin
            losses[name] += piece.loss_after / len(layers)
            line += f" | {name}: {piece.loss_before:.5f} -> {piece.loss_after:.5f}"
        steps += piece.tokens // tokens.shape[1]
        print(line, flush=True)
    for name in COMPUTE:
        print(f"{kind}/{variant} {name}: {seconds[name]:.1f} s for {steps} steps, mean loss {losses[name]:.5f}")
    print(f"float32 / bfloat16: {seconds['float32'] / seconds['bfloat16']:.2f} x in seconds", flush=True)


def end_to_end(run: Path, child: str) -> None:
    """Print processor seconds of finetuning a child, and KL on the score split before and after."""
    parent, tokens = load_model(run / "parent"), read_tokens(run / "corpus/finetune.parquet")
    settings = Finetune()
    states = open_activations(run / "activations/finetune.npy", parent, tokens, settings.micro_batch_size)
    score = str(run / "corpus/score.parquet"), str(run / "activations/score.npy"), settings.micro_batch_size
    for name in COMPUTE:
        model = load_model(run / "targets" / child / "child")
        kl = TextKL(model, parent, *score)
        before = kl.by_sequence().mean()
        begin = time.process_time()
        finetune(model, parent, states, tokens, settings.model_copy(update={"compute": name}), seed=0)
        seconds = time.process_time() - begin
        print(f"{child} {name}: {seconds:.1f} s, KL {before:.4f} -> {kl.by_sequence().mean():.4f}", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="results of a finished run with cached activations")
    parser.add_argument("--pieces", nargs="*", default=["ffn/width-0.5"], help="such as ffn/width-0.5")
    parser.add_argument("--layers", nargs="*", type=int, default=[2, 10, 18, 26])
    parser.add_argument("--children", nargs="*", default=["speed-3.0/layers-dropped"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for piece in options.pieces:
        block_distillation(options.run, *piece.split("/"), options.layers)
    for child in options.children:
        end_to_end(options.run, child)


if __name__ == "__main__":
    main()
