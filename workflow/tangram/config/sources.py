"""Fingerprints of the files that a config names by path, so that a change in place reruns their jobs.

Every parse of the Snakefile computes them, so at most `BY_CONTENT` bytes of a source are read, smallest files first;
larger files count by size and modification time. A deleted source counts as unchanged if the file made from it exists,
which records the fingerprint.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tangram.config import Config, LocalParent, LocalText, Parent, Task
from tangram.errors import TangramError
from tangram.files import sha256_of

BY_CONTENT = 64 * 2**20
NONE = "none"  # not "": Snakemake omits an empty argument
RECORD = "source_files"  # in a parent's provenance.json
METADATA = "tangram.source_files"  # in a corpus table
_TASK_FILES = (".jsonl", ".json", ".yaml", ".py")
_PARENT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*/*.jinja")


def fingerprint(files: Mapping[str, Path]) -> str:
    """Hash names and contents of files; beyond `BY_CONTENT` bytes in total, sizes and modification times.

    Raises:
        TangramError: a file cannot be read.
    """
    states, read = {}, 0
    try:
        stats = {name: path.stat() for name, path in files.items()}
        for name in sorted(files, key=lambda name: (stats[name].st_size, name)):
            read += stats[name].st_size
            if read <= BY_CONTENT:
                states[name] = _content(files[name], stats[name].st_size, stats[name].st_mtime_ns)
            else:
                states[name] = f"{stats[name].st_size} bytes, {stats[name].st_mtime_ns} ns"
    except OSError as error:
        raise TangramError(f"{error.filename} cannot be read: {error.strerror}") from error
    return hashlib.sha256(json.dumps(states, sort_keys=True).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=4096)
def _content(path: Path, size: int, modified: int) -> str:
    """Return a file's checksum, cached by size and modification time."""
    return sha256_of(path)


def parent_files(folder: str | Path) -> dict[str, Path]:
    """Return the files of a checkpoint folder that the pipeline reads, by relative path."""
    folder = Path(folder)
    paths = {path for pattern in _PARENT_FILES for path in folder.glob(pattern)}
    return {str(path.relative_to(folder)): path for path in sorted(paths) if path.is_file()}


def text_files(sources: Iterable[object]) -> dict[str, Path]:
    """Return the files of the local sources of text, by path.

    Raises:
        TangramError: a path or pattern matches no file.
    """
    files: dict[str, Path] = {}
    for source in sources:
        for pattern in source.paths if isinstance(source, LocalText) else ():
            matching = [Path(file) for file in sorted(glob.glob(pattern, recursive=True)) if Path(file).is_file()]
            if not matching:
                raise TangramError(f"no file matches '{pattern}'")
            files |= {str(path): path for path in matching}
    return files


def _record(folder: Path, parent: Parent) -> dict[str, Any] | None:
    """Return the provenance of a fetched parent; None unless it has this parent's source."""
    try:
        record = dict(json.loads((folder / "provenance.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return record if record.get("source") == parent.source.model_dump(mode="json") else None


def parent_fingerprint(parent: Parent, fetched: str | Path) -> str:
    """Return the fingerprint of a local parent's files; `NONE` for a parent of another source.

    Args:
        parent: the config's section.
        fetched: the folder that it is fetched to; once that exists, the source may be deleted.

    Raises:
        TangramError: neither the source nor the fetched folder exists.
    """
    if not isinstance(parent.source, LocalParent):
        return NONE
    if files := parent_files(parent.source.path):
        return fingerprint(files)
    if (record := _record(Path(fetched), parent)) is not None:
        return str(record.get(RECORD, NONE))
    problem = "holds no checkpoint" if Path(parent.source.path).is_dir() else "does not exist"
    raise TangramError(f"config.parent.source.path: folder '{parent.source.path}' {problem}")


def text_fingerprint(key: str, texts: Iterable[object], settings: str, table: str | Path) -> str:
    """Return the fingerprint of the local ones of some texts; `NONE` without any.

    Args:
        key: the config's key of the texts.
        texts: their sources.
        settings: the settings of the table made from them, as it records them.
        table: that table; once it exists, the texts may be deleted.

    Raises:
        TangramError: neither a file nor the table made from it exists.
    """
    try:
        files = text_files(texts)
    except TangramError as error:
        if not Path(table).is_file():
            raise TangramError(f"config.{key}: {error}") from error
        import pyarrow.parquet as pq  # imported here because it is heavy and rarely needed

        metadata = pq.read_schema(table).metadata or {}
        if metadata.get(b"tangram.settings", b"").decode() != settings:
            raise TangramError(f"config.{key}: {error}") from error
        return metadata.get(METADATA.encode(), NONE.encode()).decode()
    return fingerprint(files) if files else NONE


def task_fingerprint(key: str, tasks: Iterable[Task], others: Iterable[Task] = ()) -> str:
    """Return the fingerprint of the files that tasks name; `NONE` without any.

    A YAML file of lm-eval may include others or read data: all files of tasks in its folder count.

    Args:
        key: key of the config, for errors.
        tasks: its tasks.
        others: further tasks, whose files another key checks.

    Raises:
        TangramError: a path does not exist.
    """
    files: dict[str, Path] = {}
    for path in (Path(task.name).expanduser() for task in (*tasks, *others) if task.is_path):
        if not path.exists():
            raise TangramError(f"config.{key}: {path} does not exist; correct the path")
        folder = path if path.is_dir() else path.parent
        alone = path.suffix == ".jsonl" and path.is_file()
        members = [path] if alone else [file for file in folder.iterdir() if file.suffix in _TASK_FILES]
        files |= {str(file): file for file in sorted(members) if file.is_file()}
    return fingerprint(files) if files else NONE


def file_fingerprint(path: str | Path | None) -> str:
    """Return the fingerprint of one file; `NONE` without a path or a file."""
    return fingerprint({str(path): Path(path)}) if path and Path(path).is_file() else NONE


def parent_config(config: Config, fetched: str | Path) -> dict[str, Any] | None:
    """Return the `config.json` of a local or fetched parent, else None."""
    source, folder = config.parent.source, Path(fetched)
    if isinstance(source, LocalParent) and Path(source.path, "config.json").is_file():
        folder = Path(source.path)
    elif _record(folder, config.parent) is None:
        return None
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError):  # the job that fetches it reports the error
        return None
