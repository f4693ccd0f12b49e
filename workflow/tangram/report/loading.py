"""Read the data of a report from one run's folder; a missing table is empty and no error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tangram import tables
from tangram.blocks.architecture import Architecture, from_json, load_architecture
from tangram.engines import ENGINES, LLAMA_CPP, VLLM
from tangram.errors import TangramError
from tangram.report.data import BEST, HELDOUT, Results, Settings
from tangram.report.estimates import PARENT_KEY, Key
from tangram.report.run_files import OPTIONAL, RunFiles
from tangram.report.samples import Samples, by_model, task_rows
from tangram.search.objective import with_estimates
from tangram.search.solutions import load_solutions
from tangram.tables import CALIBRATION, COSTS, CURVES, EVALUATION, LIBRARY, SAMPLES, SCORES, SPEEDS, TRIALS

SAMPLE_FILES = ("tasks.parquet", "sequences.parquet")


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
    files: RunFiles, names: Sequence[str], schema: pa.Schema = SAMPLES
) -> dict[tuple[Key, str, str], np.ndarray]:
    """Return the values in tables of samples of these names, of the parent and all children."""
    paths = [("", "", files.folder / f"parent_{name}") for name in names]
    paths += [(target, solution, path / name) for target, solution, path in files.children() for name in names]
    frames = [_labeled(files.read(path, schema), target, solution) for target, solution, path in paths]
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


def _of_best(files: RunFiles, architectures: Mapping[tuple[str, str], Architecture], stage: str) -> list[Path]:
    """Return the targets' files of a stage's solution; one that another config made does not count."""
    paths = files.glob(f"targets/*/{stage}/solution.json")
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


def _benchmarks(files: RunFiles) -> pd.DataFrame:
    rows = []
    for path in files.glob("benchmarks/*/**/*.tsv"):
        frame = pd.read_csv(path, sep="\t")
        rule = path.relative_to(files.folder / "benchmarks").parts[0]
        rows += [{"rule": rule, "seconds": float(seconds)} for seconds in frame["s"]] if "s" in frame else []
    return pd.DataFrame(rows, columns=["rule", "seconds"])


def _discover(files: RunFiles, speeds: pd.DataFrame, architectures: dict[tuple[str, str], Architecture]) -> Settings:
    """Infer the settings of a run from its files, for a folder without a config."""
    targets = [path.name for path in files.glob("targets/*") if path.is_dir()]
    with_tasks = [path.parent.parent.name for path in files.glob("targets/*/*/tasks.parquet")]
    children = {target: tuple(name for of, name, _ in files.children() if of == target) for target in targets}
    variants = [path.relative_to(files.folder).parts[1:] for path in files.glob("library/*/*")]
    engines = {name: files.read(files.folder / "speeds" / f"{name}.parquet", SPEEDS) for name in (LLAMA_CPP, VLLM)}
    return Settings(
        run=files.folder.resolve().name,
        primary_target=next(iter([*with_tasks, *targets]), ""),
        targets=tuple(targets),
        children=children,
        library={kind: tuple(v for of, v in variants if of == kind) for kind, _ in variants},
        optional=OPTIONAL,
        num_layers=max((len(architecture.layers) for architecture in architectures.values()), default=0),
        default_scenario=next(iter(speeds["task"]), ""),
        seed=0,
        engines={target: name for name, table in engines.items() for target in table["target"] if target},
    )


def load_results(folder: str | Path, settings: Settings | None = None) -> Results:
    """Read the files of a run's config in its folder; without ``settings``, all files.

    Raises:
        TangramError: the folder does not exist, or a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TangramError(f"{folder} is not a results folder; run the pipeline, or name an existing results/<run>")
    files = RunFiles(folder, settings)
    engine = next((name for name in ENGINES if files.glob(f"costs/{name}.parquet")), "")
    folders = files.children()
    library = files.glob("library/**/*.parquet")
    curves = [path for path in library if path.name.endswith(".curves.parquet")]
    pieces = [path for path in library if path not in curves]
    architectures = {
        (target, solution): load_architecture(path / "architecture.json")
        for target, solution, path in folders
        if (path / "architecture.json").exists()
    }
    labels = ("target", "solution")

    def of_children(name: str, schema: pa.Schema = EVALUATION) -> list[pd.DataFrame]:
        return [_labeled(files.read(path / f"{name}.parquet", schema), t, s) for t, s, path in folders]

    parents = _labeled(files.read(folder / "parent_evaluation.parquet", EVALUATION), "", "")
    samples = _samples(files, SAMPLE_FILES)
    parent_files = _labeled(files.read(folder / "parent_engine.parquet", EVALUATION), "", "")
    speeds_of_files = [files.read(folder / "speeds" / f"{name}.parquet", SPEEDS) for name in (LLAMA_CPP, VLLM)]
    speeds = files.read(folder / "speeds" / "torch.parquet", SPEEDS)
    patterns = ["*.parquet", "targets/**/*.parquet"]
    patterns += [f"{name}/*.parquet" for name in ("corpus", "costs", "calibration", "speeds")]
    shown = [*pieces, *(path for pattern in patterns for path in files.glob(pattern))]
    solutions = {path: _json(path) for path in files.glob("targets/*/solutions/*.json")}
    solutions |= {path: _json(path) for path in _of_best(files, architectures, "rounds")}
    parent = _json(folder / "parent" / "provenance.json")
    records = [content.get("provenance", {}) for content in solutions.values()]
    records += [parent, *(_json(path) for path in files.glob("targets/*/*/*/provenance.json"))]
    return Results(
        folder=folder,
        settings=settings or _discover(files, speeds, architectures),
        scores=with_estimates(files.read(folder / "scores.parquet", SCORES)),
        costs=files.read(folder / "costs" / f"{engine}.parquet", COSTS),
        calibration=files.read(folder / "calibration" / f"{engine}.parquet", CALIBRATION),
        library=_concat([files.read(path, LIBRARY) for path in pieces], LIBRARY),
        distillation=_concat([files.read(path, CURVES) for path in curves], CURVES),
        finetuning=_concat(of_children("curves", CURVES), CURVES, labels),
        evaluations=_concat([parents, *of_children("evaluation")], EVALUATION, labels),
        speeds=speeds,
        tasks=_tasks(samples),
        readouts=_one_parent(_concat(of_children("readout"), EVALUATION, labels)),
        architectures=architectures,
        solutions=_solutions(solutions, architectures),
        parent=parent,
        provenance=_provenance(sorted(shown), records),
        benchmarks=_benchmarks(files),
        selections={
            path.parents[1].name: _json(path.with_name("summary.json"))
            for path in _of_best(files, architectures, "selection")
        },
        rounds={path.parents[1].name: content["rounds"] for path, content in solutions.items() if "rounds" in content},
        engines=_concat([parent_files, *of_children("engine"), *speeds_of_files], EVALUATION, labels),
        samples=samples,
        trials=files.read(folder / "trials.parquet", TRIALS),
        perplexities=_samples(files, ["perplexity.parquet"]),
        long_context=_samples(files, ["long_context.parquet"], tables.LONG_CONTEXT),
        stock={path.parents[1].name: content.get("parent", {}) for path, content in solutions.items()},
    )
