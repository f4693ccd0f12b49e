"""How scores, solutions and their true KL change with the tokens of the score split.

``python tests/benchmarks/bench_score_tokens.py results/smollm2-cpu score-tokens`` reads the parent and the distill
split of a finished run. It trains pieces of a small structural library (or takes those that the folder holds), scores
each piece on 48 sequences of the parent's own text in 16 disjoint groups of 768 tokens, and solves for the smallest sum
of scores within a budget of weights: on single groups, on means of 4 groups (3,072 tokens) and on all (12,288 tokens).
It assembles every solution and measures its KL on the run's finetune split (the parent's own text, on which nothing is
trained here) and on its held-out split.

Layers run in bfloat16 (autocast), norm and LM head in float32; the first table shows the KL of that rounding.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.stats import spearmanr

from tangram.activations import capture, open_activations
from tangram.blocks import get_block
from tangram.config import BlockDistillation, Packing, Split
from tangram.corpus.build import build_split
from tangram.corpus.tokens import read_tokens
from tangram.evaluation.text import compare_on_text
from tangram.files import write_text
from tangram.library.distill import LayerDistillation
from tangram.metrics import standard_error_by_sequence
from tangram.models.families import Shape, decoder_layers, subblock
from tangram.models.loading import load_model
from tangram.models.replace import replace_subblocks
from tangram.scores.replace_one import ReplaceOne
from tangram.tables import CORPUS, write_table

LIBRARY = (("attention", "no-op"), ("ffn", "no-op"), ("attention", "gqa-1"), ("ffn", "width-0.5"))
GROUP, GROUPS = 3, 16  # sequences of 256 tokens per group
TEXTS = {"own": "finetune", "run's held-out": "heldout"}  # splits on which nothing is trained or scored here
SIZES = {"768": 1, "3,072": 4, "12,288": 16}  # groups per table of scores
BUDGETS = (0.9, 0.8, 0.7, 0.6)  # shares of the weights of the searched layers

Task = tuple[str, str, int]
_worker: dict[str, Any] = {}


def rounded(layer: torch.nn.Module) -> torch.nn.Module:
    """Make a layer compute its products in bfloat16."""
    layer.__dict__["forward"] = torch.autocast("cpu", dtype=torch.bfloat16)(layer.forward)
    return layer


def piece_file(folder: Path, task: Task) -> Path:
    """Return the file of a piece's weights and scores."""
    return folder / "pieces" / f"{task[0]}-{task[1]}-{task[2]:02}.pt"


def prepare(results: Path, folder: Path) -> None:
    """Write the score text and the hidden states of the score text."""
    for name in ("pieces", "children"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / "score.parquet"
    if not path.exists():
        split = Split.model_validate({"tokens": 256 * GROUP * GROUPS, "sources": [{"type": "parent-samples"}]})
        write_table(build_split("score", split, Packing(), results / "parent", seed=1), CORPUS, path)
    if not (folder / "score.npy").exists():
        model = load_model(results / "parent")
        capture(model, read_tokens(folder / "score.parquet"), 4, folder / "score.npy", "score text")


def start_worker(results: Path, folder: Path) -> None:
    """Load what every task needs."""
    torch.set_num_threads(1)
    model = load_model(results / "parent").requires_grad_(False)
    plain = copy.deepcopy(model)  # block distillation in float32
    tokens = read_tokens(folder / "score.parquet")
    states = open_activations(folder / "score.npy", model, tokens, 4)
    distill = read_tokens(results / "corpus" / "distill.parquet")
    scorers = []
    for start in range(0, GROUP * GROUPS, GROUP):
        part = slice(start, start + GROUP)
        scorers.append(ReplaceOne(model, Part(states, part), tokens[part], 4, GROUP))
    for layer in decoder_layers(model):
        rounded(layer)
    calibration = open_activations(results / "activations" / "distill.npy", plain, distill, 1)
    _worker.update(results=results, folder=folder, model=model, plain=plain, scorers=scorers, calibration=calibration)


class Part:
    """The hidden states of some sequences."""

    def __init__(self, states: Any, part: slice):
        self._states, self._part = states, part

    def hidden(self, layer: int) -> torch.Tensor:
        """Return one layer's input for the sequences."""
        return torch.from_numpy(np.array(self._states._store[layer, self._part]))

    def of_sequences(self, sequences: torch.Tensor, layers: Any) -> list[torch.Tensor]:
        """Not needed by `ReplaceOne`."""
        raise NotImplementedError


def measure(task: Task) -> str:
    """Train and score one piece, and write its file."""
    kind, variant, index = task
    model, plain, calibration = _worker["model"], _worker["plain"], _worker["calibration"]
    weights: dict[str, torch.Tensor] = {}
    if variant == "parent":
        candidate = decoder_layers(model)[index]
    else:
        inputs, outputs = calibration.hidden(index), calibration.hidden(index + 1)
        problem = LayerDistillation(plain, index, inputs, outputs, BlockDistillation(epochs=1))
        weights = problem.distill(kind, variant, seed=0).weights
        overrides = get_block(kind, variant, Shape.of(model.config)).overrides()
        layer = decoder_layers(plain)[index]
        candidate = rounded(replace_subblocks(layer, model.config, index, overrides, {kind: weights}))
    kl = [scorer.score(index, candidate)[0]["value"] for scorer in _worker["scorers"]]
    torch.save({"weights": weights, "kl": kl}, piece_file(_worker["folder"], task))
    return f"{kind} {variant} layer {index}: KL {np.mean(kl):.4f}"


def solve(scores: dict[Task, float], costs: dict[Task, int], budget: float) -> frozenset[Task]:
    """Return the pieces that replace subblocks: the smallest sum of scores within a budget of weights."""
    tasks = sorted(scores)
    places = sorted({(kind, layer) for kind, _, layer in tasks})
    full = sum(costs[kind, "parent", layer] for kind, layer in places)
    saved = np.array([costs[kind, "parent", layer] - costs[kind, variant, layer] for kind, variant, layer in tasks])
    once = np.array([[float(place == (kind, layer)) for kind, _, layer in tasks] for place in places])
    found = milp(
        np.array([scores[task] for task in tasks]),
        integrality=np.ones(len(tasks)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(once, 0, 1), LinearConstraint(saved, (1 - budget) * full, np.inf)],
        options={"mip_rel_gap": 0.0},
    )
    return frozenset(task for task, chosen in zip(tasks, found.x > 0.5, strict=True) if chosen)


class Children:
    """Assembles solutions in memory and measures their KL, each once, on several texts."""

    def __init__(self, results: Path, folder: Path):
        self.folder = folder
        self.model = load_model(results / "parent").requires_grad_(False)
        self.plain = list(decoder_layers(copy.deepcopy(self.model)))
        self.layers = [rounded(layer) for layer in decoder_layers(self.model)]
        self.texts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for text, split in TEXTS.items():
            tokens = read_tokens(results / "corpus" / f"{split}.parquet")
            states = open_activations(results / "activations" / f"{split}.npy", self.model, tokens, 4)
            self.texts[text] = tokens, states.hidden(len(self.layers))

    def kl(self, pieces: frozenset[Task]) -> dict[str, list[float]]:
        """Return the mean KL of every sequence of every text, from the folder if it was measured before."""
        name = hashlib.sha256(json.dumps(sorted(pieces)).encode()).hexdigest()[:16]
        file = self.folder / "children" / f"{name}.json"
        if not file.exists():
            write_text(file, json.dumps(self._measure(pieces)))
        return dict(json.loads(file.read_text()))

    def _measure(self, pieces: frozenset[Task]) -> dict[str, list[float]]:
        shape, layers = Shape.of(self.model.config), decoder_layers(self.model)
        changed = {layer: {k: v for k, v, at in pieces if at == layer} for _, _, layer in pieces}
        for index, chosen in changed.items():
            entries = [get_block(kind, variant, shape).overrides() for kind, variant in chosen.items()]
            overrides = {name: value for entry in entries for name, value in entry.items()}
            overrides["skip"] = [name for entry in entries for name in entry.get("skip", [])]
            weights = {k: torch.load(piece_file(self.folder, (k, v, index)))["weights"] for k, v in chosen.items()}
            layers[index] = rounded(replace_subblocks(self.plain[index], self.model.config, index, overrides, weights))
        result = {}
        for name, (tokens, final) in self.texts.items():
            metrics = compare_on_text(self.model_as_child(), self.model, final, tokens, 4, name)
            result[name] = metrics["kl"].double().mean(1).tolist()
        for index in changed:
            layers[index] = self.layers[index]
        return result

    def model_as_child(self) -> Any:
        """Return the model as an object of its own, since `compare_on_text` does not run a parent beside itself."""
        return copy.copy(self.model)


def measure_child(pieces: frozenset[Task]) -> None:
    """Measure one solution's child in a worker."""
    if "children" not in _worker:
        _worker["children"] = Children(_worker["results"], _worker["folder"])
    _worker["children"].kl(pieces)


def draws(count: int) -> list[list[int]]:
    """Return the disjoint sets of groups of one size, at most eight."""
    return [list(range(i * count, (i + 1) * count)) for i in range(min(8, GROUPS // count))]


Tables = dict[str, list[dict[Task, float]]]


def tables_of(kl: dict[Task, np.ndarray]) -> Tables:
    """Return the tables of scores of every size and draw."""
    return {
        name: [{task: float(values[groups].mean()) for task, values in kl.items()} for groups in draws(count)]
        for name, count in SIZES.items()
    }


def costs_of(results: Path, folder: Path, tasks: list[Task]) -> dict[Task, int]:
    """Return the numbers of weights of pieces and of the parent's subblocks."""
    model, costs = load_model(results / "parent"), dict[Task, int]()
    for kind, variant, index in tasks:
        weights = torch.load(piece_file(folder, (kind, variant, index)))["weights"]
        costs[kind, variant, index] = sum(tensor.numel() for tensor in weights.values())
        of_parent = subblock(decoder_layers(model)[index], kind)
        costs[kind, "parent", index] = sum(tensor.numel() for tensor in of_parent.parameters())
    return costs


def print_scores(kl: dict[Task, np.ndarray], tables: Tables) -> None:
    """Print how well tables of scores agree."""
    print(
        "| score tokens | draws | Spearman to 12,288 tokens | Spearman between draws | error of a score, median |\n"
        "|---|---|---|---|---|"
    )
    order = sorted(kl)
    full = np.array([tables["12,288"][0][task] for task in order])
    for name, drawn in tables.items():
        vectors = np.array([[table[task] for task in order] for table in drawn])
        to_full = [spearmanr(vector, full)[0] for vector in vectors]
        between = [spearmanr(one, other)[0] for one, other in itertools.combinations(vectors, 2)]
        spread = [kl[task].std(ddof=1) / kl[task].mean() / SIZES[name] ** 0.5 for task in order]
        shown = f"{np.mean(between):.3f}" if between else "-"
        print(f"| {name} | {len(drawn)} | {np.mean(to_full):.3f} | {shown} | {100 * np.median(spread):.1f} % |")


def row(
    children: Children,
    budget: float,
    name: str,
    solutions: list[frozenset[Task]],
    tables: list[dict[Task, float]],
    best: frozenset[Task],
) -> None:
    """Print one row: means over the draws; standard errors over sequences of the mean child's KL."""
    shared = np.mean([len(solution & best) / max(len(solution), len(best)) for solution in solutions])
    sums = [sum(table[task] for task in solution) for solution, table in zip(solutions, tables, strict=True)]
    shown = []
    for text in TEXTS:
        values = np.array([children.kl(solution)[text] for solution in solutions])
        mean, error = standard_error_by_sequence(torch.tensor(values.mean(0))[:, None])
        shown.append(f"{mean:.4f} ± {error:.4f} ({values.mean(1).min():.4f} to {values.mean(1).max():.4f})")
    of_both = [np.concatenate(list(children.kl(solution).values())) for solution in (*solutions, best)]
    difference = np.mean(of_both[:-1], axis=0) - of_both[-1]
    paired, error = standard_error_by_sequence(torch.tensor(difference)[:, None])
    changed = np.mean([len(solution) for solution in solutions])
    print(
        f"| {budget:g} | {name} | {changed:.1f} | {100 * shared:.0f} % | {np.mean(sums):.3f} | {shown[0]} | "
        f"{shown[1]} | {paired:+.4f} ± {error:.4f} |"
    )


def main() -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--every", type=int, default=1, help="offer pieces in every N-th layer only, which takes less time"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    prepare(arguments.results, arguments.folder)
    layers = json.loads((arguments.results / "parent" / "config.json").read_text())["num_hidden_layers"]
    tasks = [(kind, variant, layer) for layer in range(0, layers, arguments.every) for kind, variant in LIBRARY]
    noise: Task = ("ffn", "parent", 0)
    missing = [task for task in [noise, *tasks] if not piece_file(arguments.folder, task).exists()]
    start = (arguments.results, arguments.folder)
    pool = ProcessPoolExecutor(arguments.workers, get_context("spawn"), initializer=start_worker, initargs=start)
    with pool:
        for line in pool.map(measure, missing):
            print(line, flush=True)
        kl = {task: np.array(torch.load(piece_file(arguments.folder, task))["kl"]) for task in tasks}
        tables, costs = tables_of(kl), costs_of(*start, tasks)
        solved = {
            (budget, name): [solve(table, costs, budget) for table in drawn]
            for budget in BUDGETS
            for name, drawn in tables.items()
        }
        list(pool.map(measure_child, sorted(set(itertools.chain(*solved.values())), key=sorted)))
    print(f"KL of rounding alone: {np.mean(torch.load(piece_file(arguments.folder, noise))['kl']):.5f}\n")
    print_scores(kl, tables)
    print(
        "\n| budget | score tokens | changed pieces | as with 12,288 | sum of own scores | true KL, own text | "
        "true KL, run's held-out text | paired difference to 12,288 |\n|---|---|---|---|---|---|---|---|"
    )
    children = Children(*start)
    for (budget, name), solutions in solved.items():
        row(children, budget, name, solutions, tables[name], solved[budget, "12,288"][0])


if __name__ == "__main__":
    main()
