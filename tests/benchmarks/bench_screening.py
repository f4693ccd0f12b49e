"""Second-order estimates beside the exact scores of finished runs, and the solutions that both give.

Run: ``python tests/benchmarks/bench_screening.py FOLDER RUN [RUN ...] --children 256``, with runs of one parent whose
scores are exact; FOLDER keeps the estimates. The pieces of all runs form one library. Costs are stored bytes, so that
budgets need no clock; a type of llama.cpp's counts its own bytes. Seconds are the process's own, on one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tangram.activations import open_activations
from tangram.blocks import PARENT, Variant, get_block
from tangram.blocks.architecture import Architecture
from tangram.blocks.base import KINDS
from tangram.config import Scenario, Search, Target
from tangram.corpus.tokens import read_tokens
from tangram.library.pieces import read_piece
from tangram.metrics import compare
from tangram.models.families import Shape, decoder_layers
from tangram.models.forward import layer_contexts
from tangram.models.loading import load_model
from tangram.models.replace import replace_subblocks
from tangram.scores import second_order
from tangram.search import contenders
from tangram.search.contenders import Case, score_contenders
from tangram.search.cost_model import CostModel
from tangram.search.problem import Problem, options_of
from tangram.search.solve import solve

BYTES = {None: 4, "bf16": 2, "int8": 1, "q8_0": 34 / 32, "q4_0": 18 / 32}
KEYS = ["layer", "kind", "variant"]
SAMPLES = (1, 2, 4, 8)
WINDOWS = (1, 4, 16, 64, 256)  # tokens whose changes are summed before squaring
SHARES = {"all": (0.5, 0.3, 0.2, 0.15), "structure": (0.9, 0.8, 0.6)}


class Clock:
    """Processor seconds of a function's calls."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        begin = time.process_time()
        result = self.function(*arguments)
        self.seconds += time.process_time() - begin
        return result


class Recorded(second_order.SecondOrder):
    """Estimates whose products of gradient and change are kept, ``(samples, sequences, length)`` for every piece."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.kept: list[torch.Tensor] = []

    def products(self, *arguments: Any) -> torch.Tensor:
        """Return the products, and keep them."""
        self.kept.append(super().products(*arguments))
        return self.kept[-1]


def exact_of(run: Path, metrics: Sequence[str] = ("kl",)) -> pd.DataFrame:
    """Return a run's exact scores of its subblocks' pieces, with the run's name."""
    table = pd.read_parquet(run / "scores.parquet")
    return table[table["metric"].isin(metrics) & (table["kind"] != "head")].assign(run=str(run))


def file_of(run: Path, kind: str, variant: str) -> Path:
    """Return a variant's library file; the run has one shard."""
    (path,) = (run / "library" / kind / variant).glob("*.safetensors")
    return path


def estimates_of(run: Path, folder: Path, samples: int) -> pd.DataFrame:
    """Return estimates of a run's pieces, from the folder if it has them; print their cost and their agreement."""
    stored = folder / f"{run.name}-{samples}.parquet"
    if stored.exists():
        return pd.read_parquet(stored)
    model, tokens = load_model(run / "parent").requires_grad_(False), read_tokens(run / "corpus/score.parquet")
    states, exact = open_activations(run / "activations/score.npy", model, tokens, 4), exact_of(run)
    variants = {kind: sorted(set(exact[exact["kind"] == kind]["variant"])) for kind in KINDS}
    begin = time.process_time()
    screening = Recorded(model, states, samples, 4, 0)
    labels = time.process_time() - begin
    second_order._pull_back = backward = Clock(second_order._pull_back)  # type: ignore[assignment]
    begin = time.process_time()
    rows = screening.rows(variants, lambda kind, variant, layer: read_piece(file_of(run, kind, variant), layer, kind))
    table = pd.DataFrame(list(rows)).assign(run=str(run))
    pieces = time.process_time() - begin - backward.seconds
    seconds = [
        float(path.read_text().split("\n")[1].split("\t")[-1]) for path in run.glob("benchmarks/score_blocks/*/*/*")
    ]
    print(f"{run.name}: {len(table)} pieces; seconds: labels {labels:.1f}, backward {backward.seconds:.1f}, ", end="")
    print(f"pieces {pieces:.1f}; exact jobs, starts included, {sum(seconds):.0f}")
    agreement(table, exact, torch.stack(screening.kept))
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(stored)
    return table


def agreement(table: pd.DataFrame, exact: pd.DataFrame, products: torch.Tensor) -> None:
    """Print rank correlations with exact scores, by the number of samples and the size of the windows."""
    truth = table.merge(exact, on=KEYS, how="left", suffixes=("", "_exact"))["value_exact"]
    for count in (count for count in SAMPLES if count <= products.shape[1]):
        for window in WINDOWS if count == products.shape[1] else (1,):
            parts = products[:, :count].unfold(-1, window, window).sum(-1)
            values = pd.Series(parts.square().mean((1, 2, 3)).numpy() / 2 / window)
            found = [values.corr(truth, method=method) for method in ("spearman", "kendall")]
            print(f"  {count} samples, windows of {window:3}: Spearman {found[0]:.4f}, Kendall {found[1]:.4f}")


def costs_of(table: pd.DataFrame, shape: Shape) -> CostModel:
    """Return costs of a second per stored gigabyte; embedding and head are free."""
    sizes: dict[tuple[str, str], float] = {(kind, PARENT): 4 * shape.parameters(kind) for kind in KINDS}
    for kind, variant in {tuple(row) for row in table[["kind", "variant"]].itertuples(index=False)}:
        block = get_block(kind, variant, shape)
        sizes[kind, variant] = BYTES[Variant.parse(variant).precision] * shape.parameters(kind) * block.relative_size()
    rows = [
        {"layer_class": 0, "kind": kind, "variant": variant, "engine": "bytes", "device": "", "scenario": "bytes"}
        | {"phase": phase, "batch": 1, "seconds": size / 1e9, "seconds_spread": 0.0, "parent_seconds": 1.0}
        | {"ratio_error": 0.0, "parameters": int(size), "parameter_bytes": int(size), "kv_bytes_per_token": 0}
        for (kind, variant), size in {**sizes, ("head", PARENT): 0, ("model", PARENT): 0}.items()
        for phase in ("prefill", "decode")
    ]
    scale = {"model": PARENT, "scenario": "bytes", "batch": 1, "scale": 1.0, "measured_seconds": 1.0}
    scales = pd.DataFrame([{**scale, "phase": phase} for phase in ("prefill", "decode")])
    return CostModel(pd.DataFrame(rows), scales, {"bytes": Scenario(prefill=1, generate=1, batch_sizes=(1,))})


def solution_of(scores: pd.DataFrame, case: Case, layers: int) -> Architecture:
    """Return the best architecture."""
    return solve(Problem(options_of(scores, "kl", layers), case.costs, case.target), Search())[0].architecture


def solutions(
    estimates: pd.DataFrame, exact: pd.DataFrame, case: Case, layers: int
) -> tuple[dict[str, Architecture], list[int]]:
    """Return the solutions of exact scores, estimates, and contenders, and the pieces scored in each round."""
    rows = exact.set_index(KEYS, drop=False)
    rounds: list[int] = []

    def exactly(pieces: list[tuple[int, str, str]]) -> list[dict[str, Any]]:
        rounds.append(len(pieces))
        return [rows.loc[piece].to_dict() for piece in pieces]

    found = score_contenders(estimates.to_dict("records"), [], [case], Search(), layers, exactly)
    tables = {"exact": exact, "estimates": estimates, "contenders": pd.concat([pd.DataFrame(found), estimates])}
    return {name: solution_of(table, case, layers) for name, table in tables.items()}, rounds


class Children:
    """True KLs of children on held-out tokens, by one forward pass each."""

    def __init__(self, run: Path, source: dict[tuple[str, str], Path], tokens: int):
        self.model, self.source = load_model(run / "parent").requires_grad_(False), source
        ids = read_tokens(run / "corpus/heldout.parquet")
        self.ids = ids[: max(1, tokens // ids.shape[1])]
        self.shape = Shape.of(self.model.config)
        self.parent = self.logits(Architecture.of([]))

    @torch.inference_mode()
    def logits(self, architecture: Architecture) -> torch.Tensor:
        """Return logits ``(tokens, vocabulary)``; an architecture without layers is the parent."""
        hidden = self.model.model.embed_tokens(self.ids)
        contexts = layer_contexts(self.model, hidden[:1])
        for index, layer in enumerate(decoder_layers(self.model)):
            entries: dict[str, Any] = {}
            pieces = {}
            for kind in KINDS if architecture.layers else ():
                variant = getattr(architecture.layers[index], kind)
                if variant != PARENT:
                    path = file_of(self.source[kind, variant], kind, variant)
                    pieces[kind] = read_piece(path, index, kind)
                    for key, value in get_block(kind, variant, self.shape).entries().items():
                        entries[key] = [*entries.get(key, []), *value] if isinstance(value, list) else value
            module = replace_subblocks(layer, self.model.config, index, entries, pieces) if pieces else layer
            hidden = module(hidden, **contexts[index])
        return self.model.lm_head(self.model.model.norm(hidden)[:, :-1]).flatten(0, 1)

    def kl(self, architecture: Architecture) -> float:
        """Return KL(parent ‖ child) in nats per token."""
        labels = self.ids[:, 1:].flatten()
        parts = zip(self.logits(architecture).split(256), self.parent.split(256), labels.split(256), strict=True)
        return torch.cat([compare(*part)["kl"] for part in parts]).double().mean().item()


def main(folder: Path, runs: Sequence[Path], samples: int, children: int) -> None:
    """Print agreement and cost of every run's estimates, and the solutions on all runs' pieces."""
    torch.set_num_threads(1)
    contenders.is_usable = lambda variant, target: True  # types of llama.cpp's beside torch's precisions
    estimates = pd.concat([estimates_of(run, folder, samples) for run in runs]).drop_duplicates(KEYS)
    exact = pd.concat([exact_of(run) for run in runs]).drop_duplicates(KEYS)
    layers = int(estimates["layer"].max()) + 1
    print(f"{len(estimates) / layers:g} variants per layer, {len(estimates)} pieces in all")
    source = {(row.kind, row.variant): Path(row.run) for row in exact.itertuples()}
    judge = Children(runs[0], source, children) if children else None
    costs = costs_of(exact, Shape.of(load_model(runs[0] / "parent").config))
    for library, shares in SHARES.items():
        mine = [library == "all" or "@" not in variant for variant in estimates["variant"]]
        theirs = [library == "all" or "@" not in variant for variant in exact["variant"]]
        of_exact = exact[theirs].set_index(KEYS)["value"]
        for share in shares:
            limit = {"quantity": "latency", "max": share, "scenario": "bytes"}
            case = Case(Target.model_validate({"constraints": [limit]}), costs)
            found, rounds = solutions(estimates[mine], exact[theirs], case, layers)
            print(f"{library}, {share} of the bytes: {sum(rounds)} pieces scored exactly, by rounds {rounds}")
            for name, architecture in found.items():
                total = sum(of_exact.get(piece, 0.0) for piece in architecture.pieces() if piece[2] != PARENT)
                kl = f", true KL {judge.kl(architecture):.4f}" if judge else ""
                print(f"  {name:10} sum of exact scores {total:.4f}{kl}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--children", type=int, default=0, help="held-out tokens for true KLs; 0 for none")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.runs, arguments.samples, arguments.children)
