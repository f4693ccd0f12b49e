"""Atomic writes and checksums: a reader never opens a partly written file."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from tangram.errors import TangramError

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")


def _cannot_write(path: Path, error: OSError) -> TangramError:
    return TangramError(
        f"cannot write {path}: {error.strerror}; free space or choose a writable results folder, then run again"
    )


def check_writable(path: str | Path) -> None:
    """Create the folder of ``path`` and check that it is writable; called before long work, so that none is lost.

    Raises:
        TangramError: the folder cannot be created or written.
    """
    path = Path(path)
    probe = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.probe")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _cannot_write(path, error) from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` for a new file or folder, which replaces ``path`` on success.

    Raises:
        TangramError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    # Two copies of a job may run, on one node or two: each writes its own temporary file, and the later one remains.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    check_writable(path)
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():  # os.replace replaces only an empty folder
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or temporary.name not in str(error.filename or temporary.name):
            raise
        raise _cannot_write(path, error) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_CHECKSUM = "tangram.sha256"  # metadata key for the checksum of a safetensors file without this entry


def write_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata as safetensors, atomically; equal content gives equal bytes.

    The file contains its checksum, which `check_tensors` verifies.

    Raises:
        TangramError: the folder cannot be written or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors would write a file that only its owner can read
        try:
            save_file(dict(tensors), temporary, {"format": "pt", **metadata, _CHECKSUM: "0" * 64})
        except SafetensorError as error:
            raise TangramError(f"cannot write {path}: {error}; free space and run again") from error
        with open(temporary, "r+b") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
            header["__metadata__"][_CHECKSUM] = _digest(header, stream)
            # safetensors orders metadata by a hash that differs between processes, so sort it in place.
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            stream.seek(8)
            stream.write(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size))
        temporary.chmod(mode)


def _digest(header: dict[str, Any], rest: BinaryIO) -> str:
    """Return the SHA-256 of a header (sorted and without its checksum) and of the rest of the file."""
    metadata = {name: text for name, text in header.get("__metadata__", {}).items() if name != _CHECKSUM}
    digest = hashlib.sha256(json.dumps({**header, "__metadata__": metadata}, sort_keys=True).encode())
    while chunk := rest.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def digest_of_tensors(path: str | Path) -> str:
    """Return the SHA-256 of a safetensors file without its metadata: equal tensors have equal digests."""
    with open(path, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        return _digest({name: entry for name, entry in header.items() if name != "__metadata__"}, stream)


def by_weights(models: Mapping[str, str | None], measure: Callable[[str, str], Result]) -> Iterator[tuple[str, Result]]:
    """Yield every given model's name and result; of models with equal weights, the first one is measured for all.

    Args:
        models: checkpoint folders by name; None for a model that is not given.
        measure: returns the result of a model's name and folder.
    """
    results: dict[str, Result] = {}
    for name, folder in models.items():
        if folder is not None:
            weights = digest_of_tensors(Path(folder) / "model.safetensors")
            if weights not in results:
                results[weights] = measure(name, folder)
            yield name, results[weights]


def read_progress(path: Path, identity: str) -> dict[str, Any]:
    """Return what an earlier job of the same identity wrote of its progress as JSON; empty if there is no such job.

    Raises:
        TangramError: the file is damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content if content["identity"] == identity else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TangramError(f"{path} is damaged ({error}); delete it to start again") from error


def check_tensors(path: str | Path, ours: bool = True) -> None:
    """Check a safetensors file against the checksum in it.

    Args:
        path: the file.
        ours: whether a checksum is required; files that `write_tensors` did not write have none.

    Raises:
        TangramError: the file is missing, truncated or altered; the message names the remedy.
    """
    try:
        facts = os.stat(path)
        _check_tensors(str(path), ours, facts.st_mtime_ns, facts.st_size)
    except (OSError, ValueError) as error:
        raise TangramError(f"{path} cannot be read ({error}); delete it and run again: it is rebuilt") from error


@functools.lru_cache(maxsize=256)
def _check_tensors(path: str, ours: bool, modified: int, size: int) -> None:
    """Check a file; the cache's key covers its modification, so an unmodified file is checked once."""
    with open(path, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        expected = header.get("__metadata__", {}).get(_CHECKSUM)
        if (ours or expected is not None) and _digest(header, stream) != expected:
            raise TangramError(f"{path} does not match its own checksum; delete it and run again: it is rebuilt")
