"""Is the sum of scores true? Sums and true KL of many children per budget, and the searches beside each other.

``python -m tangram_studies.search_fidelity --help``. Per budget, children come from three sources: the solver's diverse
solutions, random choices within the limit, and random walks of level switches from the solver's best. The true KL is
measured on the score split, on which the sums were measured, and on held-out text.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tangram.blocks.architecture import Architecture
from tangram.cli import ONE_THREAD, Runtime, RuntimeOption, run
from tangram.config import LIGHT_SEARCHES, RANDOM_WEIGHTS, Evolution, Scores, Search, Target
from tangram.errors import TangramError
from tangram.search import rivals
from tangram.search.evolutionary import Mutations, evolve
from tangram.search.problem import Batches, Problem
from tangram.search.solve import solve
from tangram.selection.agreement import Fidelity, fidelity
from tangram.selection.assembled import AssembledScores

if TYPE_CHECKING:
    from tangram.library.pieces import Library

STEPS = (1, 2, 4, 8)  # level switches of a random walk
SOURCES = ("diverse", "random", "walks")


@dataclass(frozen=True)
class Text:
    """One text: the true scores on it, and the sequences that are used."""

    truth: AssembledScores
    rows: Sequence[int]

    def look(self, children: Sequence[Architecture]) -> np.ndarray:
        """Return the true scores, ``(children, sequences)``."""
        return self.truth.look(children, self.rows)


@dataclass(frozen=True)
class Settings:
    """What is measured per budget.

    Attributes:
        search: the solver's settings.
        per_source: children of each source.
        evolution: settings of the evolutionary search, from the solver's best and from random choices.
        seed: seed of all random numbers.
    """

    search: Search
    per_source: int
    evolution: Evolution
    seed: int


def diverse(problem: Problem, search: Search, count: int) -> list[Architecture]:
    """Return the solver's diverse solutions, fewer if no more exist, the proven best first."""
    while True:
        target = problem.target.model_copy(update={"solutions": count})
        try:
            solutions = solve(Problem(problem.options, problem.costs, target), search)
        except TangramError:
            if count == 1:
                raise
            count = max(1, count // 2)
            continue
        return [solution.architecture for solution in solutions]


def children_of(problem: Problem, batches: Batches, settings: Settings) -> dict[str, list[Architecture]]:
    """Return distinct children within the limit, by source."""
    found = diverse(problem, settings.search, settings.per_source)
    rng = np.random.default_rng(settings.seed)
    mutations = Mutations(problem, batches, rng)
    walks = []
    for number in range(settings.per_source):
        child = found[0]
        for _ in range(STEPS[number % len(STEPS)]):
            child = mutations.offspring(child) or child
        walks.append(child)
    drawn = [rivals.run("random", problem, settings.search, seed)[0] for seed in range(settings.per_source)]
    sources, seen = {}, set[Architecture]()
    for name, children in zip(SOURCES, (found, drawn, walks), strict=True):
        sources[name] = [child for child in dict.fromkeys(children) if child not in seen]
        seen.update(children)
    return sources


def searched(
    problem: Problem, batches: Batches, best: Architecture, truth: AssembledScores, settings: Settings
) -> dict[str, tuple[Architecture, float, list[list[float]]]]:
    """Return every search's architecture, its seconds, and the curve of the evolutionary ones, without failed ones."""
    results: dict[str, tuple[Architecture, float, list[list[float]]]] = {}

    def timed(name: str, search: Callable[[], tuple[Architecture, list[list[float]]]]) -> None:
        start = time.perf_counter()
        try:
            architecture, curve = search()
        except TangramError as error:
            print(f"search_fidelity: {name}: {error}", file=sys.stderr)
            return
        results[name] = (architecture, time.perf_counter() - start, curve)

    def evolved(first: Architecture) -> tuple[Architecture, list[list[float]]]:
        result = evolve(problem, batches, first, truth.look, truth.sequences, settings.evolution, settings.seed)
        return result.architecture, [list(point) for point in result.curve]

    timed("mip", lambda: (solve(problem, settings.search)[0].architecture, []))
    for name in LIGHT_SEARCHES:
        if name == RANDOM_WEIGHTS:  # its architecture is the solver's
            continue
        timed(name, lambda name=name: (rivals.run(name, problem, settings.search, settings.seed)[0], []))  # type: ignore[misc]
    timed("evolutionary from mip", lambda: evolved(best))
    if "random" in results:
        timed("evolutionary from random", lambda: evolved(results["random"][0]))
    return results


def measure(problem: Problem, texts: Mapping[str, Text], settings: Settings) -> dict[str, Any]:
    """Return sums, true scores, statistics and searches of one budget as JSON."""
    solution = solve(problem, settings.search)[0]
    sources = children_of(problem, solution.batches, settings)
    children = [child for group in sources.values() for child in group]
    predicted = np.array([problem.objective(child) for child in children])
    print(f"search_fidelity: {', '.join(f'{len(group)} {name}' for name, group in sources.items())}", file=sys.stderr)
    true = {name: text.look(children) for name, text in texts.items()}
    of_source = np.repeat(list(sources), [len(group) for group in sources.values()])
    results = searched(problem, solution.batches, solution.architecture, next(iter(texts.values())).truth, settings)
    architectures = [architecture for architecture, _, _ in results.values()]
    ends = {name: text.look(architectures) for name, text in texts.items()}
    entries = []
    for number, (name, (architecture, seconds, curve)) in enumerate(results.items()):
        usage = problem.resources(solution.batches).usage[0]
        positions = [problem.position(*pair) for pair in enumerate(architecture.choices)]
        fixed = problem.resources(solution.batches).fixed[0]
        entries.append(
            {
                "search": name,
                "sum": problem.objective(architecture),
                "used": float(usage[positions].sum() + fixed),
                "seconds": seconds,
                "curve": curve,
                "true": {text: values[number].tolist() for text, values in ends.items()},
            }
        )
    groups = {"all": np.full(len(children), True)} | {name: of_source == name for name in sources}
    groups["diverse and walks"] = of_source != "random"
    return {
        "children": [
            {"source": str(source), "sum": float(total), "true": {name: v[i].tolist() for name, v in true.items()}}
            for i, (source, total) in enumerate(zip(of_source, predicted, strict=True))
        ],
        "fidelity": {
            name: {group: vars(fidelity(predicted[rows], values.mean(1)[rows])) for group, rows in groups.items()}
            for name, values in true.items()
        },
        "searches": entries,
    }


def tables(budget: str, result: Mapping[str, Any]) -> str:
    """Return one budget's measurements as Markdown tables."""
    lines = [f"### {budget}", "", "| text | children | n | tau (95 %) | rho | regret 1, 5, 10 | sum / true |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for text, groups in result["fidelity"].items():
        for group, values in groups.items():
            found = Fidelity(**values)
            regret = ", ".join(f"{value:.3f}" for value in found.regret.values())
            tau = f"{found.tau:.2f} ({found.tau_low:.2f} to {found.tau_high:.2f})"
            ratio = f"{found.ratio:.2f} ({found.ratio_low:.2f} to {found.ratio_high:.2f})"
            cells = [text, group, str(found.children), tau, f"{found.rho:.2f}", regret, ratio]
            lines.append(f"| {' | '.join(cells)} |")
    texts = list(result["fidelity"])
    columns = " | ".join(f"KL, {text}" for text in texts)
    lines += ["", f"| search | sum | share of the limit | {columns} | less mip | seconds |"]
    lines += ["|---|---|---|" + "---|" * len(texts) + "---|---|"]
    best = np.array(result["searches"][0]["true"][texts[-1]])
    for entry in result["searches"]:
        values = [np.array(entry["true"][text]) for text in texts]
        difference = values[-1] - best
        error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else float("nan")
        lines.append(
            f"| {entry['search']} | {entry['sum']:.4f} | {entry['used']:.4f} | "
            f"{' | '.join(f'{v.mean():.4f}' for v in values)} | {difference.mean():+.4f} ± {error:.4f} "
            f"| {entry['seconds']:.1f} |"
        )
    return "\n".join([*lines, ""])


def search_fidelity(
    config: Annotated[Path, typer.Option(help="the finished run's config, of which scenarios and scores are read")],
    results: Annotated[Path, typer.Option(help="the run's folder, such as results/smollm2-structure")],
    output: Annotated[Path, typer.Option(help="JSON file of all measurements")],
    budgets: Annotated[str, typer.Option(help="minimal throughputs over the packed parent's")] = "1.5,1.75,2.0",
    per_source: Annotated[int, typer.Option(help="children of each of three sources")] = 17,
    evaluations: Annotated[int, typer.Option(help="budget of each evolutionary search")] = 100,
    sequences: Annotated[int, typer.Option(help="held-out sequences")] = 8,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Measure sums of scores beside the true KL of assembled children, and the searches beside each other."""
    runtime.start()
    from tangram.config import load
    from tangram.files import write_text
    from tangram.search.problem import Settings as ProblemSettings
    from tangram.search.problem import load_problem

    run_config = load(config)
    texts = texts_of(results, run_config.scores, sequences, runtime)
    evolution = Evolution(evaluations=evaluations, offspring=8)
    settings = Settings(Search(time_limit=600), per_source, evolution, runtime.seed)
    content: dict[str, Any] = {}
    for budget in budgets.split(","):
        scenario = next(iter(run_config.scenarios))
        limit = {"quantity": "throughput", "min": float(budget), "scenario": scenario, "reference": "packed"}
        target = Target.model_validate({"constraints": [limit]})
        section = ProblemSettings(target=target, search=settings.search, scenarios=run_config.scenarios)
        costs, calibration = (results / folder / "torch.parquet" for folder in ("costs", "calibration"))
        problem = load_problem(section, results / "scores.parquet", costs, calibration, results / "parent")
        content[budget] = measure(problem, texts, settings)
        write_text(output, json.dumps(content, indent=1) + "\n")
        print(tables(f"{budget} x the packed parent", content[budget]), flush=True)


def library_of(results: Path) -> Library:
    """Return the pieces of a finished run.

    Raises:
        TangramError: the run's folder holds no library.
    """
    from tangram.library.pieces import read_library

    shards = sorted({path.stem for path in (results / "library").glob("[af]*/*/*.safetensors")})
    if not shards:
        raise TangramError(f"{results} holds no library; name the folder of a finished run")
    return read_library(results / "library", tuple(shards))


def texts_of(results: Path, scores: Scores, sequences: int, runtime: Runtime) -> dict[str, Text]:
    """Return the score split and held-out sequences of a finished run, with its parent and library.

    Raises:
        TangramError: the run's folder holds no library.
    """
    from tangram.activations import open_activations
    from tangram.corpus.tokens import read_tokens
    from tangram.models.loading import load_model

    library = library_of(results)
    model = load_model(str(results / "parent"), runtime.dtype, runtime.device)
    texts = {}
    for split in ("score", "heldout"):
        tokens, cache = read_tokens(results / "corpus" / f"{split}.parquet"), results / "activations" / f"{split}.npy"
        states = open_activations(cache if cache.exists() else None, model, tokens, scores.batch_size)
        truth = AssembledScores(model, states, tokens, library, scores.batch_size, scores.position_stride)
        texts[split] = Text(truth, range(len(tokens) if split == "score" else min(sequences, len(tokens))))
    return texts


if __name__ == "__main__":
    run(search_fidelity)
