"""Which files in a run's folder are of the run's config: the folder keeps what earlier configs made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pyarrow as pa

from tangram.config import LAYERS_DROPPED, SEARCHES
from tangram.config import UNIFORM as UNIFORM_FILE
from tangram.engines import ENGINES, TORCH
from tangram.report.data import UNIFORM, Settings
from tangram.tables import read_table

OF_PRIMARY = ("tasks", "perplexity", "long_context", "readout")  # of the parent and the primary target's children
OPTIONAL = (*OF_PRIMARY, "trials")  # tables that not every config asks for


@dataclass(frozen=True)
class RunFiles:
    """The files of a run; without ``settings``, all in its folder."""

    folder: Path
    settings: Settings | None

    def glob(self, pattern: str) -> list[Path]:
        """Return the files and folders that match a pattern, in order."""
        return sorted(path for path in self.folder.glob(pattern) if self.belongs(path))

    def read(self, path: Path, schema: pa.Schema) -> pd.DataFrame:
        """Return a table; an empty one if it does not exist or is not of this run."""
        exists = path.exists() and self.belongs(path)
        return read_table(path, schema) if exists else schema.empty_table().to_pandas()

    def children(self) -> list[tuple[str, str, Path]]:
        """Return target, solution and folder of all children."""
        folders = [path for path in self.glob("targets/*/*") if path.is_dir() and is_child(path.name)]
        return [(path.parent.name, path.name, path) for path in folders]

    def belongs(self, path: Path) -> bool:
        """Return whether a file or folder in the run's folder is of this run."""
        if (settings := self.settings) is None:
            return True
        engines = {settings.engines.get(target, TORCH) for target in settings.targets}
        name = path.name.removesuffix(path.suffix) if path.suffix in (".parquet", ".json") else path.name
        match path.relative_to(self.folder).parts:
            case "targets", target, *_ if target not in settings.children:
                return False
            case "targets", target, place, *_ if is_child(place) and place not in settings.children[target]:
                return False
            case "targets", target, "solutions", _ if name == UNIFORM_FILE:
                return any(solution in UNIFORM for solution in settings.children[target])
            case "targets", target, "solutions", _:
                return name in settings.children[target] or not is_child(name)
            case "targets", target, _, _ if name in OF_PRIMARY:
                return name in settings.optional and target == settings.primary_target
            case "targets", target, _, _ if name == "engine":
                return target in settings.engines
            case "library", kind, variant, *_:
                return variant in settings.library.get(kind, ())
            case "costs" | "calibration" | "speeds" as place, _ if name in ENGINES:
                return name in engines or (place, name) == ("speeds", TORCH)  # in which all children are timed
            case "benchmarks", _, *names:
                return self._of_piece_or_child([name.removesuffix(".tsv") for name in names])
            case ("parent_engine.parquet",):
                return bool(settings.engines)
            case (_,) if name.removeprefix("parent_") in OPTIONAL:
                return name.removeprefix("parent_") in settings.optional
        return True

    def _of_piece_or_child(self, wildcards: list[str]) -> bool:
        """Return whether a job is of this run: unless its wildcards name a piece or child that is not."""
        named: list[Iterable[str]] = [("targets", name) for name in wildcards]
        named += [(place, *pair) for place in ("targets", "library") for pair in pairwise(wildcards)]
        folders = [self.folder.joinpath(*parts) for parts in named]
        return all(self.belongs(folder) for folder in folders if folder.is_dir())


def is_child(name: str) -> bool:
    """Return whether a name in a target's folder is that of a solution that becomes a child."""
    return name.isdigit() or name in (LAYERS_DROPPED, *UNIFORM, *SEARCHES)
