"""Atomic files and checksums: a reader never sees half a file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tangram.errors import TangramError

if TYPE_CHECKING:
    import torch


def _cannot_write(path: Path, error: OSError) -> TangramError:
    return TangramError(
        f"cannot write {path}: {error.strerror}; free space or choose a writable results folder, then run again"
    )


def check_writable(path: str | Path) -> None:
    """Make the folder that ``path`` is to be written to; called before long work, so that no work is lost.

    Raises:
        TangramError: the folder cannot be made or written.
    """
    path = Path(path)
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _cannot_write(path, error) from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (a file or a folder to be); on success it replaces ``path``.

    Raises:
        TangramError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    check_writable(path)
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():  # a folder replaces only an empty one
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


def write_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata as safetensors, atomically; equal content gives equal bytes.

    Raises:
        TangramError: the folder cannot be written or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # the library's own files are for their owner only
        try:
            save_file(dict(tensors), temporary, {"format": "pt", **metadata})
        except SafetensorError as error:
            raise TangramError(f"cannot write {path}: {error}; free space and run again") from error
        # The library orders metadata by a hash that differs between processes: put it in order, in place.
        with open(temporary, "r+b") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            stream.seek(8)
            stream.write(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size))
        temporary.chmod(mode)
