"""Fashion-MNIST from synthetic files: every source, and every check."""

import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest

from tangram.errors import TangramError
from tangram_studies.data import fashion_mnist as images

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "train_images": RANDOM.integers(0, 256, (7, 28, 28), dtype=np.uint8),
    "train_labels": RANDOM.integers(0, 10, 7, dtype=np.uint8),
    "test_images": RANDOM.integers(0, 256, (3, 28, 28), dtype=np.uint8),
    "test_labels": RANDOM.integers(0, 10, 3, dtype=np.uint8),
}


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


FILES = {images.FILES[name]: idx(array) for name, array in ARRAYS.items()}
SHA256 = {name: hashlib.sha256(idx(array)).hexdigest() for name, array in ARRAYS.items()}


def deb(compression="xz"):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{compression}") as archive:
        for name, content in [("./usr/share/trap.py", b"raise SystemExit"), *FILES.items()]:
            packed = gzip.compress(content)
            info = tarfile.TarInfo(name if name.startswith("./") else f"{images.MEMBER_FOLDER}/{name}.gz")
            info.size = len(packed)
            archive.addfile(info, io.BytesIO(packed))
    members = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (f"data.tar.{compression}", data.getvalue())]
    raw = b"!<arch>\n"
    for name, content in members:
        raw += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        raw += b"\n" * (len(content) % 2)
    return raw


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """Fetch into an empty folder, without apt."""
    (tmp_path / "downloads").mkdir()
    (tmp_path / "installed").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))

    def fetch():
        output = tmp_path / "results" / "images.npz"
        images.fetch(output, {"made": "here"}, tmp_path / "downloads", tmp_path / "installed", SHA256)
        return images.load_images(output)

    return fetch


def assert_all_there(found):
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(getattr(found, name), array)
        assert getattr(found, name).dtype == np.uint8


@pytest.mark.parametrize("place", ["downloads", "installed"])
@pytest.mark.parametrize("packed", [True, False])
def test_files_put_by_hand_or_installed(fetch, tmp_path, place, packed):
    for name, content in FILES.items():
        if packed:
            (tmp_path / place / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (tmp_path / place / name).write_bytes(content)
    assert_all_there(fetch())


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_a_package_put_by_hand(fetch, tmp_path, compression):
    (tmp_path / "downloads" / f"{images.DEBIAN_PACKAGE}_1_all.deb").write_bytes(deb(compression))
    assert_all_there(fetch())


def test_apt_downloads_it_once(fetch, tmp_path):
    (tmp_path / "package").write_bytes(deb())
    apt = tmp_path / "apt-get"
    apt.write_text(
        f"#!/bin/sh\n[ \"$*\" = 'download {images.DEBIAN_PACKAGE}' ] || exit 9\n"
        f"/bin/cp {tmp_path}/package {images.DEBIAN_PACKAGE}_1_all.deb\n"
    )
    apt.chmod(0o755)
    assert_all_there(fetch())
    apt.unlink()
    assert_all_there(fetch())
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [f"{images.DEBIAN_PACKAGE}_1_all.deb"]


def test_without_apt_one_line_says_how_to_get_it(fetch, tmp_path):
    with pytest.raises(
        TangramError, match=r"apt-get is not installed.*apt-get update.*put the package.*downloads/"
    ) as error:
        fetch()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "results" / "images.npz").exists()


def test_apts_own_reason_is_told(fetch, tmp_path):
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2; exit 100\n")
    apt.chmod(0o755)
    with pytest.raises(TangramError, match="Unable to locate package"):
        fetch()


def test_other_contents_are_refused(fetch, tmp_path):
    for name, content in FILES.items():
        changed = content[:-1] + bytes([content[-1] ^ 1]) if name.startswith("t10k-labels") else content
        (tmp_path / "downloads" / name).write_bytes(changed)
    with pytest.raises(TangramError, match="t10k-labels-idx1-ubyte has SHA-256"):
        fetch()


def test_a_damaged_package_is_named(fetch, tmp_path):
    (tmp_path / "downloads" / f"{images.DEBIAN_PACKAGE}_1_all.deb").write_bytes(deb()[:300])
    with pytest.raises(TangramError, match=r"1_all\.deb is not a readable"):
        fetch()


@pytest.mark.parametrize("data", [b"", b"\0\0\x08", b"\0\0\x0d\x01\0\0\0\x01a", b"\0\0\x08\x01\0\0\0\x02a"])
def test_what_is_no_idx_file_is_refused(data):
    with pytest.raises(ValueError, match="not an IDX"):
        images.read_idx(data)


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "images.npz").write_bytes(b"PK")
    with pytest.raises(TangramError, match="delete it and run again"):
        images.load_images(tmp_path / "images.npz")
