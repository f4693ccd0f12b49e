"""Archives: what is read from them, what is checked, and that nothing of them is imported."""

import hashlib
import io
import multiprocessing
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tangram import archives
from tangram.config import PackageFile
from tangram.errors import TangramError

MEMBERS = {"pack-1.0/pack/tasks/a/task.json": b"A", "pack-1.0/pack/tasks/b/task.json": b"B", "pack-1.0/setup.py": b"0"}


def write_wheel(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in MEMBERS.items():
            wheel.writestr(name, data)
    return path


def write_sdist(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as sdist:
        for name, data in MEMBERS.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            sdist.addfile(info, io.BytesIO(data))
    return path


def write_installable(folder: Path) -> Path:
    """Write a real wheel that pip accepts and whose import would be noticed."""
    path = folder / "tangram_test_data-1.2-py3-none-any.whl"
    info = "tangram_test_data-1.2.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tangram_test_data/__init__.py", "raise RuntimeError('imported')")
        wheel.writestr("tangram_test_data/text.txt", "some text")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tangram-test-data\nVersion: 1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def offline_index(tmp_path, monkeypatch):
    """Let pip see one local folder and no index, and work in an empty folder."""
    links = tmp_path / "links"
    links.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


@pytest.mark.parametrize("write", [write_wheel, write_sdist])
def test_only_members_that_match_are_read(tmp_path, write):
    archive = write(tmp_path / "archive")
    assert dict(archives.read_members(archive, ["*/tasks/*/task.json"])) == {
        "pack-1.0/pack/tasks/a/task.json": b"A",
        "pack-1.0/pack/tasks/b/task.json": b"B",
    }
    assert [name for name, _ in archives.read_members(archive, ["pack-1.0/setup.py"])] == ["pack-1.0/setup.py"]


@pytest.mark.parametrize("write", [write_wheel, write_sdist])
def test_a_pattern_without_a_member_is_named(tmp_path, write):
    with pytest.raises(TangramError, match=r"no member that matches '\*/none\.json'"):
        list(archives.read_members(write(tmp_path / "archive"), ["*/tasks/*", "*/none.json"]))


@pytest.mark.parametrize("write", [write_wheel, write_sdist])
def test_a_truncated_archive_is_told(tmp_path, write):
    archive = write(tmp_path / "archive")
    archive.write_bytes(archive.read_bytes()[:-60])
    with pytest.raises(TangramError, match="damaged"):
        list(archives.read_members(archive, ["*"]))


def test_pip_downloads_once_and_nothing_is_imported(offline_index):
    source = write_installable(offline_index)
    wanted = PackageFile(package="tangram-test-data==1.2", archive_sha256=sha256(source))
    archive = archives.fetch_archive(wanted)
    assert archive.parent == Path(".downloads")
    assert archive.read_bytes() == source.read_bytes()
    source.unlink()  # a second fetch has nothing to download from
    assert archives.fetch_archive(wanted) == archive
    assert "tangram_test_data" not in sys.modules
    assert not list(Path(".downloads").glob(".partial*"))


def test_a_wrong_hash_names_both_before_and_after_the_download(offline_index):
    source = write_installable(offline_index)
    wanted = PackageFile(package="tangram-test-data==1.2", archive_sha256="0" * 64)
    with pytest.raises(TangramError, match=f"{sha256(source)}, expected {'0' * 64}") as error:
        archives.fetch_archive(wanted)
    assert "\n" not in str(error.value)
    assert not list(Path(".downloads").glob("*.whl"))
    (Path(".downloads") / source.name).write_bytes(b"something else")
    with pytest.raises(TangramError, match=f"{hashlib.sha256(b'something else').hexdigest()}, expected 0000"):
        archives.fetch_archive(wanted)


@pytest.mark.parametrize(("archive", "name"), [("wheel", "no_such-1.2-*.whl"), ("sdist", "no-such-1.2.tar.gz")])
def test_offline_says_where_to_put_the_archive(offline_index, archive, name):
    wanted = PackageFile(package="no-such==1.2", format=archive, archive_sha256="0" * 64)
    with pytest.raises(TangramError, match=r"cannot download no-such==1\.2") as error:
        archives.fetch_archive(wanted)
    assert f".downloads/{name}" in str(error.value)
    assert "\n" not in str(error.value)


def _fetch(wanted: PackageFile) -> str:
    return str(archives.fetch_archive(wanted))


def test_two_jobs_that_want_the_same_archive_download_it_once(offline_index, capfd):
    wanted = PackageFile(package="tangram-test-data==1.2", archive_sha256=sha256(write_installable(offline_index)))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.map(_fetch, [wanted, wanted])
    assert first == second
    assert capfd.readouterr().err.count("downloading tangram-test-data==1.2") == 1


def test_reading_an_archive_needs_no_torch():
    code = "import sys, tangram.archives; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_archive_of_another_version_is_not_taken(offline_index):
    source = write_installable(offline_index)
    Path(".downloads").mkdir()
    for other in ("tangram_test_data-1.2.1-py3-none-any.whl", "tangram_test_data-1.2-nonsense.whl", "notes.whl"):
        (Path(".downloads") / other).write_bytes(b"something else")
    archive = archives.fetch_archive(PackageFile(package="tangram-test-data==1.2", archive_sha256=sha256(source)))
    assert archive.name == source.name


def test_an_archive_is_known_by_any_spelling_of_its_name(offline_index):
    source = write_installable(offline_index)
    (Path.cwd() / ".downloads").mkdir()
    kept = Path(".downloads") / source.name
    shutil.copy(source, kept)
    spelled = PackageFile(package="Tangram_Test.Data == 1.2.0", archive_sha256=sha256(source).upper())
    assert archives.fetch_archive(spelled) == kept


def test_of_two_builds_the_one_with_the_checksum_is_taken(offline_index):
    source = write_installable(offline_index)
    Path(".downloads").mkdir()
    (Path(".downloads") / "tangram_test_data-1.2-1-py3-none-any.whl").write_bytes(b"another build")
    shutil.copy(source, Path(".downloads") / source.name)
    wanted = PackageFile(package="tangram-test-data==1.2", archive_sha256=sha256(source))
    assert archives.fetch_archive(wanted).name == source.name


def test_an_sdist_of_another_version_is_not_taken(offline_index):
    (Path.cwd() / ".downloads").mkdir()
    write_sdist(Path(".downloads") / "pack-1.0.post1.tar.gz")
    right = write_sdist(Path(".downloads") / "Pack-1.0.tar.gz")
    wanted = PackageFile(package="pack==1.0", format="sdist", archive_sha256=sha256(right))
    assert archives.fetch_archive(wanted) == right
