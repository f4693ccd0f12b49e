"""Files that a config names by path: which they are, and what they hold, so that a change in place is noticed.

Every parse of the Snakefile asks, so up to `BY_CONTENT` bytes of a source are read, its smallest files first; larger
ones count by size and time of last change. A source that is gone counts as unchanged if what was made from it is there:
its fingerprint is recorded in that.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tangram.config import Config, LocalParent, LocalText, Parent, Split
from tangram.errors import TangramError
from tangram.files import sha256_of

BY_CONTENT = 64 * 2**20
NONE = "none"  # Snakemake leaves out an empty argument
RECORD = "source_files"  # in a parent's provenance.json
METADATA = "tangram.source_files"  # in a corpus table
_PARENT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*/*.jinja")


def fingerprint(files: Mapping[str, Path]) -> str:
    """Hash names and contents of files, or names, sizes and times of last change beyond `BY_CONTENT` bytes in all.

    Raises:
        TangramError: a file cannot be read.
    """
    found, read = {}, 0
    try:
        stats = {name: path.stat() for name, path in files.items()}
        for name in sorted(files, key=lambda name: (stats[name].st_size, name)):
            read += stats[name].st_size
            if read <= BY_CONTENT:
                found[name] = _content(files[name], stats[name].st_size, stats[name].st_mtime_ns)
            else:
                found[name] = f"{stats[name].st_size} bytes, {stats[name].st_mtime_ns} ns"
    except OSError as error:
        raise TangramError(f"{error.filename} cannot be read: {error.strerror}") from error
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=4096)
def _content(path: Path, size: int, modified: int) -> str:
    """Return a file's checksum; read once, as long as size and time stay the same."""
    return sha256_of(path)


def parent_files(folder: str | Path) -> dict[str, Path]:
    """Return the files of a checkpoint folder that the pipeline reads, by their names inside it."""
    folder = Path(folder)
    found = {path for pattern in _PARENT_FILES for path in folder.glob(pattern)}
    return {str(path.relative_to(folder)): path for path in sorted(found) if path.is_file()}


def text_files(sources: Iterable[object]) -> dict[str, Path]:
    """Return the files of local texts.

    Raises:
        TangramError: a path or pattern matches no file.
    """
    found: dict[str, Path] = {}
    for source in sources:
        for pattern in source.paths if isinstance(source, LocalText) else ():
            matching = [Path(file) for file in sorted(glob.glob(pattern, recursive=True)) if Path(file).is_file()]
            if not matching:
                raise TangramError(f"no file matches '{pattern}'")
            found |= {str(path): path for path in matching}
    return found


def _record(folder: Path, parent: Parent) -> dict[str, Any] | None:
    """Return the provenance of a fetched parent, if it is this one's."""
    try:
        record = dict(json.loads((folder / "provenance.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return record if record.get("source") == parent.source.model_dump(mode="json") else None


def parent_fingerprint(parent: Parent, fetched: str | Path) -> str:
    """Return what a local parent's files hold; `NONE` for a parent that is elsewhere.

    Args:
        parent: the config's section.
        fetched: the folder that it is fetched to; once that is made, the source may go.

    Raises:
        TangramError: the folder is not there, nor what was made from it.
    """
    if not isinstance(parent.source, LocalParent):
        return NONE
    if files := parent_files(parent.source.path):
        return fingerprint(files)
    if (record := _record(Path(fetched), parent)) is not None:
        return str(record.get(RECORD, NONE))
    problem = "holds no checkpoint" if Path(parent.source.path).is_dir() else "does not exist"
    raise TangramError(f"config.parent.source.path: folder '{parent.source.path}' {problem}")


def text_fingerprint(name: str, split: Split, settings: str, table: str | Path) -> str:
    """Return what the local texts of a split hold; `NONE` for one without.

    Args:
        name: the split's.
        split: its section.
        settings: all that the split's table is made from, as it is recorded there.
        table: that table; once it is made, the texts may go.

    Raises:
        TangramError: a file is not there, nor the table that was made from it.
    """
    try:
        files = text_files(split.sources)
    except TangramError as error:
        if not Path(table).is_file():
            raise TangramError(f"config.corpus.{name}: {error}") from error
        import pyarrow.parquet as pq  # heavy, and rarely needed

        metadata = pq.read_schema(table).metadata or {}
        if metadata.get(b"tangram.settings", b"").decode() != settings:
            raise TangramError(f"config.corpus.{name}: {error}") from error
        return metadata.get(METADATA.encode(), NONE.encode()).decode()
    return fingerprint(files) if files else NONE


def file_fingerprint(path: str | Path | None) -> str:
    """Return what one file holds; `NONE` without one."""
    return fingerprint({str(path): Path(path)}) if path and Path(path).is_file() else NONE


def parent_config(config: Config, fetched: str | Path) -> dict[str, Any] | None:
    """Return the parent's own `config.json`, if it is known before any job: local, or fetched already."""
    source, folder = config.parent.source, Path(fetched)
    if isinstance(source, LocalParent) and Path(source.path, "config.json").is_file():
        folder = Path(source.path)
    elif _record(folder, config.parent) is None:
        return None
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError):  # told by the job that fetches it
        return None
