"""The data of a report, read from one run's tables; a missing table is empty and no error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from tangram import tables
from tangram.blocks import PARENT, Variant, block_class
from tangram.blocks.architecture import Architecture, from_json, load_architecture
from tangram.blocks.base import PRECISIONS
from tangram.config import LAYERS_DROPPED, SEARCHES, Section, uniform_solution
from tangram.engines import ENGINES, LLAMA_CPP, VLLM
from tangram.errors import TangramError
from tangram.report.estimates import PACKED_KEY, PARENT_KEY, Estimate, Key, ratio
from tangram.report.samples import Samples, by_model, counted, task_rows
from tangram.search.objective import with_estimates
from tangram.search.solutions import load_solutions
from tangram.tables import CALIBRATION, COSTS, CURVES, EVALUATION, LIBRARY, SAMPLES, SCORES, SPEEDS, TRIALS, read_table

HELDOUT = "heldout"
SAMPLE_FILES = ("tasks.parquet", "sequences.parquet")
BEST = "0"  # name of the solver's proven best solution, or of the selected candidate
UNIFORM = {uniform_solution(precision): precision for precision in PRECISIONS}  # precisions of the uniform rivals
SPEEDUP, PACKED_SPEEDUP = "speedup", "packed_speedup"  # throughput over the stock parent's, and over the packed one's


class Settings(Section):
    """Settings of the report beyond the tables; ``engines`` holds those of targets whose engine is not torch."""

    run: str
    primary_target: str
    targets: tuple[str, ...]
    num_layers: int
    default_scenario: str
    seed: int
    engines: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """One run's tables, as frames of `tangram.tables`' schemas; a frame is empty if the run lacks its file.

    ``evaluations``, ``tasks``, ``readouts`` and ``engines`` are EVALUATION, and ``finetuning`` is CURVES, with leading
    columns ``target`` and ``solution``; ``samples`` holds the values of each question and held-out sequence, from which
    ``tasks`` is computed, ``perplexities`` those of each part of texts, and ``long_context`` of each question about a
    long text; ``benchmarks`` has one row per job; ``solutions`` holds the entries of files of solutions by target and
    solution, and ``stock`` the predictions of the stock parent by target.
    """

    folder: Path
    settings: Settings
    scores: pd.DataFrame
    costs: pd.DataFrame
    calibration: pd.DataFrame
    library: pd.DataFrame
    distillation: pd.DataFrame
    finetuning: pd.DataFrame
    evaluations: pd.DataFrame
    speeds: pd.DataFrame
    tasks: pd.DataFrame
    readouts: pd.DataFrame
    architectures: dict[tuple[str, str], Architecture]
    solutions: dict[tuple[str, str], dict[str, Any]]
    parent: dict[str, Any]
    provenance: list[dict[str, str]]
    benchmarks: pd.DataFrame
    selections: dict[str, dict[str, Any]] = field(default_factory=dict)
    rounds: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    stock: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: Samples = field(default_factory=dict)
    perplexities: Samples = field(default_factory=dict)
    long_context: Samples = field(default_factory=dict)
    engines: pd.DataFrame = field(default_factory=pd.DataFrame)
    trials: pd.DataFrame = field(default_factory=pd.DataFrame)

    def estimate(self, key: Key, task: str, metric: str) -> Estimate | None:
        """Return one model's measurement, or None."""
        return self._estimates.get((*key, task, metric))

    @cached_property
    def _estimates(self) -> dict[tuple[str, ...], Estimate]:
        estimates: dict[tuple[str, ...], Estimate] = {}
        for row in rows_of(pd.concat([self.tasks, self.readouts, self.evaluations, self.speeds])):
            error = None if math.isnan(row.standard_error) else row.standard_error
            estimates[row.target, row.solution, row.model, row.task, row.metric] = Estimate(row.value, error, row.n)
        return estimates

    @cached_property
    def counted(self) -> dict[str, str]:
        """The metric that counts in each task, by the task's name."""
        keys = dict.fromkeys(key for key, _, _ in self.samples)
        return {task: metric for key in keys for task, (metric, _) in counted(self.samples, key).items()}

    def heldout(self, key: Key, metric: str) -> Estimate | None:
        """Return a metric on held-out text; the parent's KL to itself is 0 and its agreement 1.

        The packed parent computes what the parent does, up to rounding.
        """
        key = PARENT_KEY if key == PACKED_KEY else key
        if key == PARENT_KEY and metric in ("kl", "agreement"):
            return Estimate(float(metric == "agreement"), 0.0)
        return self.estimate(key, HELDOUT, metric)

    def speedup(self, key: Key, metric: str = SPEEDUP) -> Estimate | None:
        """Return the measured throughput in the default scenario as a multiple of the parent's.

        Finetuning does not change the shape of a model, so child and finetuned child have the same speed.

        Args:
            key: the model.
            metric: ``SPEEDUP``, over the parent in stock transformers, or ``PACKED_SPEEDUP``, over the packed parent.
        """
        reference, scenario = PARENT_KEY if metric == SPEEDUP else PACKED_KEY, self.settings.default_scenario
        if key == reference:
            return Estimate(1.0, 0.0)
        for model in dict.fromkeys((key.model, "finetuned", "child")):
            same_shape = key._replace(model=model)
            speedup = self.estimate(same_shape, scenario, metric)
            if speedup:
                return speedup
            throughput = self.estimate(same_shape, scenario, "throughput")
            parent_throughput = self.estimate(reference, scenario, "throughput")
            if throughput and parent_throughput:
                return ratio(throughput, parent_throughput)
        return None

    @property
    def best_parent(self) -> Key:
        """The fastest measured parent, over which a claim is made: the packed one, or the stock one without it."""
        packed = self.estimate(PACKED_KEY, self.settings.default_scenario, "throughput")
        return PACKED_KEY if packed else PARENT_KEY

    def claimed_speedup(self, key: Key) -> Estimate | None:
        """Return the measured speed-up over `best_parent`."""
        return self.speedup(key, PACKED_SPEEDUP if self.best_parent == PACKED_KEY else SPEEDUP)

    @property
    def children(self) -> list[tuple[str, str]]:
        """Return every (target, solution) with an architecture or an evaluation, in config order, rivals last."""
        evaluated = set(zip(self.evaluations["target"], self.evaluations["solution"], strict=True))
        pairs = {pair for pair in {*self.architectures, *evaluated} if pair[0]}
        order = {name: i for i, name in enumerate(self.settings.targets)}
        return sorted(pairs, key=lambda pair: (order.get(pair[0], len(order)), pair[0], *_order(pair[1])))

    def models(self, target: str, solution: str) -> list[Key]:
        """Return the evaluated models of one solution, before and after finetuning."""
        frame = self.evaluations
        names = set(frame[(frame["target"] == target) & (frame["solution"] == solution)]["model"])
        return [Key(target, solution, model) for model in ("child", "finetuned") if model in names]

    def final(self, target: str, solution: str) -> Key | None:
        """Return the last evaluated model of one solution: the finetuned child, else the assembled one."""
        models = self.models(target, solution)
        return models[-1] if models else None

    @property
    def chosen(self) -> Key | None:
        """The last evaluated model of the primary target's best solution, or None."""
        return self.final(self.settings.primary_target, BEST)

    def sum_of_scores(self, architecture: Architecture, metric: str = "kl") -> float | None:
        """Return the sum of replace-1-block scores of an architecture, or None if a piece has no score."""
        frame = self.scores[self.scores["metric"] == metric]
        values = {(row.layer, row.kind, row.variant): row.value for row in rows_of(frame) if not math.isnan(row.value)}
        changed = list(architecture.scored())
        if any(piece not in values for piece in changed):
            return None
        return math.fsum(values[piece] for piece in changed)

    def variants(self, kind: str, searched: bool = False) -> list[str]:
        """Return the variants of a kind except the parent's, from mildest to strongest.

        Args:
            kind: the kind of subblock.
            searched: leave out those that are only sources of quantized pieces, neither scored nor timed.
        """
        names: set[str] = set()
        for frame in (self.scores, self.costs) if searched else (self.library, self.scores, self.costs):
            names |= set(frame[frame["kind"] == kind]["variant"])
        for architecture in self.architectures.values():
            names |= {variant for _, of_kind, variant in architecture.pieces() if of_kind == kind}
        return sorted(names - {PARENT}, key=strength)


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """Yield a frame's rows with columns as attributes, whose types the stubs of pandas do not know."""
    yield from frame.itertuples(index=False)


def strength(variant: str) -> tuple[int, float, str]:
    """Return a sort key: the parent first, families from mild to strong, and within a family from large to small."""
    return block_class(variant).severity, -(Variant.parse(variant).size or 0.0), variant


def _order(solution: str) -> tuple[int, int, str]:
    return (1, 0, solution) if not solution.isdigit() else (0, int(solution), solution)


def _read(path: Path, schema: pa.Schema) -> pd.DataFrame:
    return read_table(path, schema) if path.exists() else schema.empty_table().to_pandas()


def _concat(frames: Iterable[pd.DataFrame], schema: pa.Schema, extra: tuple[str, ...] = ()) -> pd.DataFrame:
    frames = [frame for frame in frames if len(frame)]
    if frames:
        return pd.concat(frames, ignore_index=True)
    empty = schema.empty_table().to_pandas()
    for i, name in enumerate(extra):
        empty.insert(i, name, pd.Series(dtype=object))
    return empty


def _one_parent(frame: pd.DataFrame) -> pd.DataFrame:
    """Clear the parent's target and keep its first rows: each child's repeat them."""
    frame.loc[frame["model"] == PARENT_KEY.model, ["target", "solution"]] = ""
    return frame.drop_duplicates(["target", "solution", "model", "task", "metric"], ignore_index=True)


def _labeled(frame: pd.DataFrame, target: str, solution: str) -> pd.DataFrame:
    frame.insert(0, "target", target)
    frame.insert(1, "solution", solution)
    return frame


def _samples(
    folder: Path, folders: Iterable[tuple[str, str, Path]], names: Sequence[str], schema: pa.Schema = SAMPLES
) -> dict[tuple[Key, str, str], np.ndarray]:
    """Return the values in tables of samples of these names, of the parent and all children."""
    paths = [("", "", folder / f"parent_{name}") for name in names]
    paths += [(target, solution, path / name) for target, solution, path in folders for name in names]
    frames = [_labeled(_read(path, schema), target, solution) for target, solution, path in paths]
    return by_model(_concat(frames, schema, ("target", "solution")))


def _tasks(samples: Samples) -> pd.DataFrame:
    """Return the rows of all models on the tasks, the answers of which ``samples`` holds."""
    answers = {name: values for name, values in samples.items() if name[1] != HELDOUT}
    return pd.DataFrame(task_rows(answers), columns=["target", "solution", *EVALUATION.names])


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TangramError(f"{path} is damaged ({error}); delete it and run again") from error
    return content if isinstance(content, dict) else {"content": content}


def _child_folders(folder: Path) -> list[tuple[str, str, Path]]:
    folders = [path for path in folder.glob("targets/*/*") if path.is_dir()]
    folders = [path for path in folders if path.name.isdigit() or path.name in (LAYERS_DROPPED, *UNIFORM, *SEARCHES)]
    return [(path.parent.name, path.name, path) for path in sorted(folders)]


def _of_best(folder: Path, architectures: Mapping[tuple[str, str], Architecture], stage: str) -> list[Path]:
    """Return the targets' files of a stage's solution; one that another config made does not count."""
    paths = sorted(folder.glob(f"targets/*/{stage}/solution.json"))
    return [path for path in paths if load_solutions(path)[BEST] == architectures.get((path.parents[1].name, BEST))]


def _solutions(
    contents: Mapping[Path, dict[str, Any]], architectures: Mapping[tuple[str, str], Architecture]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the entries of files of solutions by target and solution; a selected solution becomes 0."""
    solutions = {
        (path.parents[1].name, entry["solution"]): entry
        for path, content in contents.items()
        for entry in content.get("solutions", [])
    }
    selected = {
        (target, BEST): entry
        for (target, solution), entry in solutions.items()
        if solution.isdigit() and from_json(entry) == architectures.get((target, BEST))
    }
    return solutions | selected


def _provenance(tables: Iterable[Path], others: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the distinct provenance records of tables and JSON files: command, code, settings, versions, device."""
    encoded = [pq.read_schema(path).metadata or {} for path in tables]
    decoded = [{key.decode(): value.decode() for key, value in metadata.items()} for metadata in encoded]
    records: dict[tuple[tuple[str, str], ...], None] = {}
    for metadata in [*decoded, *others]:
        names = ("command", "code", "settings", "versions", "device")
        record = {name: metadata[f"tangram.{name}"] for name in names if f"tangram.{name}" in metadata}
        if "command" in record:
            records[tuple(record.items())] = None
    return sorted((dict(record) for record in records), key=lambda record: sorted(record.items()))


def _benchmarks(folder: Path) -> pd.DataFrame:
    rows = []
    for path in sorted((folder / "benchmarks").glob("*/**/*.tsv")):
        frame = pd.read_csv(path, sep="\t")
        rule = path.relative_to(folder / "benchmarks").parts[0]
        rows += [{"rule": rule, "seconds": float(seconds)} for seconds in frame["s"]] if "s" in frame else []
    return pd.DataFrame(rows, columns=["rule", "seconds"])


def _discover(folder: Path, speeds: pd.DataFrame, architectures: dict[tuple[str, str], Architecture]) -> Settings:
    """Infer the settings of a run from its files, for a folder without a config."""
    targets = tuple(sorted(path.name for path in folder.glob("targets/*") if path.is_dir()))
    with_tasks = [path.parent.parent.name for path in folder.glob("targets/*/*/tasks.parquet")]
    return Settings(
        run=folder.resolve().name,
        primary_target=next(iter([*sorted(with_tasks), *targets]), ""),
        targets=targets,
        num_layers=max((len(architecture.layers) for architecture in architectures.values()), default=0),
        default_scenario=next(iter(speeds["task"]), ""),
        seed=0,
        engines=_engines(folder),
    )


def _engines(folder: Path) -> dict[str, str]:
    """Return the engines of the targets whose children were timed in another one than torch."""
    tables = {name: _read(folder / "speeds" / f"{name}.parquet", SPEEDS) for name in (LLAMA_CPP, VLLM)}
    return {target: name for name, table in tables.items() for target in table["target"] if target}


def load_results(folder: str | Path, settings: Settings | None = None) -> Results:
    """Read a run's folder; without ``settings``, infer them from the files.

    Raises:
        TangramError: the folder does not exist, or a file in it is damaged.
    """
    folder = Path(folder)
    engine = next((name for name in ENGINES if (folder / "costs" / f"{name}.parquet").exists()), "")
    if not folder.is_dir():
        raise TangramError(f"{folder} is not a results folder; run the pipeline, or name an existing results/<run>")
    folders = _child_folders(folder)
    library = sorted(folder.glob("library/**/*.parquet"))
    curves = [path for path in library if path.name.endswith(".curves.parquet")]
    pieces = [path for path in library if path not in curves]
    architectures = {
        (target, solution): load_architecture(path / "architecture.json")
        for target, solution, path in folders
        if (path / "architecture.json").exists()
    }
    labels = ("target", "solution")

    def of_children(name: str, schema: pa.Schema = EVALUATION) -> list[pd.DataFrame]:
        return [_labeled(_read(path / f"{name}.parquet", schema), t, s) for t, s, path in folders]

    parents = _labeled(_read(folder / "parent_evaluation.parquet", EVALUATION), "", "")
    samples = _samples(folder, folders, SAMPLE_FILES)
    parent_files = _labeled(_read(folder / "parent_engine.parquet", EVALUATION), "", "")
    speeds_of_files = [_read(folder / "speeds" / f"{name}.parquet", SPEEDS) for name in (LLAMA_CPP, VLLM)]
    speeds = _read(folder / "speeds" / "torch.parquet", SPEEDS)
    patterns = ["*.parquet", "targets/**/*.parquet"]
    patterns += [f"{name}/*.parquet" for name in ("corpus", "costs", "calibration", "speeds")]
    shown = [*pieces, *(path for pattern in patterns for path in folder.glob(pattern))]
    solutions = {path: _json(path) for path in sorted(folder.glob("targets/*/solutions/*.json"))}
    solutions |= {path: _json(path) for path in _of_best(folder, architectures, "rounds")}
    parent = _json(folder / "parent" / "provenance.json")
    records = [content.get("provenance", {}) for content in solutions.values()]
    records += [parent, *(_json(path) for path in folder.glob("targets/*/*/*/provenance.json"))]
    return Results(
        folder=folder,
        settings=settings or _discover(folder, speeds, architectures),
        scores=with_estimates(_read(folder / "scores.parquet", SCORES)),
        costs=_read(folder / "costs" / f"{engine}.parquet", COSTS),
        calibration=_read(folder / "calibration" / f"{engine}.parquet", CALIBRATION),
        library=_concat([_read(path, LIBRARY) for path in pieces], LIBRARY),
        distillation=_concat([_read(path, CURVES) for path in curves], CURVES),
        finetuning=_concat(of_children("curves", CURVES), CURVES, labels),
        evaluations=_concat([parents, *of_children("evaluation")], EVALUATION, labels),
        speeds=speeds,
        tasks=_tasks(samples),
        readouts=_one_parent(_concat(of_children("readout"), EVALUATION, labels)),
        architectures=architectures,
        solutions=_solutions(solutions, architectures),
        parent=parent,
        provenance=_provenance(sorted(shown), records),
        benchmarks=_benchmarks(folder),
        selections={
            path.parents[1].name: _json(path.with_name("summary.json"))
            for path in _of_best(folder, architectures, "selection")
        },
        rounds={path.parents[1].name: content["rounds"] for path, content in solutions.items() if "rounds" in content},
        engines=_concat([parent_files, *of_children("engine"), *speeds_of_files], EVALUATION, labels),
        samples=samples,
        trials=_read(folder / "trials.parquet", TRIALS),
        perplexities=_samples(folder, folders, ["perplexity.parquet"]),
        long_context=_samples(folder, folders, ["long_context.parquet"], tables.LONG_CONTEXT),
        stock={path.parents[1].name: content.get("parent", {}) for path, content in solutions.items()},
    )
