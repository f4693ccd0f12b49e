"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747), from Debian's package `dataset-fashion-mnist`.

Only the four data files are read. Nothing of the package is installed, imported or run.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tangram.archives import DOWNLOADS
from tangram.cli import run
from tangram.errors import TangramError
from tangram.files import atomic_path, check_writable
from tangram.provenance import provenance

DEBIAN_PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
MEMBER_FOLDER = "./usr/share/datasets/fashion-mnist"
FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
SHA256 = {  # of the uncompressed files
    "train_images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train_labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "test_images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "test_labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@dataclass(frozen=True)
class Images:
    """Gray images and their classes.

    Attributes:
        train_images: ``(60000, 28, 28)``, uint8.
        train_labels: ``(60000,)``, uint8, 0 to 9.
        test_images: ``(10000, 28, 28)``, uint8.
        test_labels: ``(10000,)``, uint8, 0 to 9.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def read_idx(data: bytes) -> np.ndarray:
    """Return the array of unsigned bytes in an IDX file.

    Raises:
        ValueError: the magic number is another, or sizes and length disagree.
    """
    axes = data[3] if data[:3] == b"\0\0\x08" and len(data) > 3 else -1
    start = 4 + 4 * axes
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], dtype=">u4")) if axes > 0 else ()
    if axes < 1 or len(shape) != axes or len(data) != start + int(np.prod(shape)):
        raise ValueError("not an IDX file of unsigned bytes")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def read_deb(package: str | Path) -> dict[str, bytes]:
    """Return the compressed data files in a Debian package, by name; nothing is written to disk.

    Raises:
        TangramError: the package is damaged, or lacks these files.
    """
    try:
        raw = Path(package).read_bytes()
        if not raw.startswith(b"!<arch>\n"):
            raise ValueError("no ar archive")
        at, files = 8, dict[str, bytes]()
        while at < len(raw):  # `ar`: headers of 60 bytes, members padded to even lengths
            name, size = raw[at : at + 16].decode().strip(" /"), int(raw[at + 48 : at + 58])
            if name.startswith("data.tar"):
                with tarfile.open(fileobj=io.BytesIO(raw[at + 60 : at + 60 + size])) as archive:
                    for file in FILES.values():
                        stream = archive.extractfile(f"{MEMBER_FOLDER}/{file}.gz")
                        assert stream is not None
                        files[file] = stream.read()
                return files
            at += 60 + size + size % 2
        raise ValueError("no data in it")
    except (OSError, ValueError, KeyError, tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise TangramError(f"{package} is not a readable {DEBIAN_PACKAGE} package ({error}); delete it") from error


def _in_folder(folder: Path) -> dict[str, bytes] | None:
    contents = {}
    for file in FILES.values():
        path = next((p for p in (folder / f"{file}.gz", folder / file) if p.is_file()), None)
        if path is None:
            return None
        contents[file] = path.read_bytes()
    return contents


def _download(downloads: Path) -> Path:
    """Download the package with apt into the folder of downloads, atomically; it needs no rights beyond that folder."""
    with tempfile.TemporaryDirectory(dir=downloads, prefix=".partial-") as folder:
        try:
            command = ["apt-get", "download", DEBIAN_PACKAGE]
            print(" ".join(command), file=sys.stderr, flush=True)
            process = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            lines = [line for line in process.stderr.splitlines() if line.startswith("E:")]
            reason = lines[0] if lines else f"exit status {process.returncode}"
        except FileNotFoundError:
            reason = "apt-get is not installed"
        packages = list(Path(folder).glob("*.deb"))
        if not packages:
            raise TangramError(
                f"Fashion-MNIST: no Debian package {DEBIAN_PACKAGE} ({reason}); run `apt-get update` first, or put the "
                f"package or its four files ({FILES['train_images']}.gz, …) into {downloads}/"
            )
        path = downloads / packages[0].name
        os.replace(packages[0], path)
        return path


def _raw_files(downloads: Path, installed: Path) -> tuple[str, dict[str, bytes]]:
    """Return the source of the four files, and their bytes by name."""
    for folder in (downloads, installed):
        if (contents := _in_folder(folder)) is not None:
            return str(folder), contents
    packages = sorted(downloads.glob(f"{DEBIAN_PACKAGE}_*.deb"))
    package = packages[-1] if packages else _download(downloads)
    return str(package), read_deb(package)


def fetch(
    output: str | Path,
    made_by: Mapping[str, str],
    downloads: Path = DOWNLOADS,
    installed: Path = INSTALLED,
    sha256: Mapping[str, str] = SHA256,
) -> None:
    """Write the images and labels to ``output`` (npz), atomically.

    The first of these sources that exists is used: the four files in the folder of downloads, the installed package, a
    package in the folder of downloads, apt.

    Args:
        output: file to write.
        made_by: flat metadata for the file.
        downloads: folder for downloads.
        installed: folder into which Debian installs the files.
        sha256: expected hash of each uncompressed file.

    Raises:
        TangramError: no source has the files, or their hashes differ.
    """
    check_writable(output)
    check_writable(downloads / "package")
    where, files = _raw_files(downloads, installed)
    arrays: dict[str, Any] = {}
    for name, file in FILES.items():
        try:
            data = gzip.decompress(files[file]) if files[file][:2] == b"\x1f\x8b" else files[file]
        except (OSError, EOFError) as error:
            raise TangramError(f"{where}: {file} is damaged ({error}); replace it") from error
        if (digest := hashlib.sha256(data).hexdigest()) != sha256[name]:
            raise TangramError(
                f"{where}: {file} has SHA-256 {digest} unpacked, expected {sha256[name]}; replace it by Debian's"
            )
        arrays[name] = read_idx(data)
    with atomic_path(output) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays, provenance=np.array(json.dumps(dict(made_by), sort_keys=True)))


def load_images(path: str | Path) -> Images:
    """Return the images in an npz file that `fetch` or `bigbench_images.unpack` wrote.

    Raises:
        TangramError: the file is missing or damaged.
    """
    try:
        with np.load(path) as archive:
            return Images(**{name: archive[name] for name in FILES})
    except Exception as error:  # NumPy and zipfile raise many types of errors for damaged files
        raise TangramError(f"{path} cannot be read ({error}); delete it and run again") from error


def fetch_fashion_mnist(output: Annotated[str, typer.Option(help="images and labels to write (npz)")]) -> None:
    """Write train_images, train_labels, test_images and test_labels as unsigned bytes."""
    fetch(output, provenance("tangram_studies.data.fashion_mnist", {}))


if __name__ == "__main__":
    run(fetch_fashion_mnist)
