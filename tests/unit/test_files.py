"""Atomic files: whatever goes wrong, the old content stays and nothing half-written is left."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tangram.errors import TangramError
from tangram.files import (
    atomic_path,
    by_weights,
    check_tensors,
    check_writable,
    digest_of_tensors,
    read_progress,
    sha256_of,
    write_tensors,
    write_text,
)

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16)}


def _write_half(path: Path) -> None:
    write_text(path, "half")
    raise ZeroDivisionError


def test_text_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "text"
    write_text(path, "first")
    write_text(path, "second")
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "text"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        _write_half(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    for name in ("old", "new"):
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert [path.name for path in folder.iterdir()] == ["new"]
    with pytest.raises(ZeroDivisionError), atomic_path(folder) as temporary:
        _write_half(temporary / "half")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_path_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for write in (check_writable, lambda path: write_text(path, "text")):
        with pytest.raises(
            TangramError, match=r"cannot write .*; free space or choose a writable results folder"
        ) as caught:
            write(tmp_path / "file" / "below")
        assert "\n" not in str(caught.value)


def test_a_disk_that_fills_up_is_one_line_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "text"
    write_text(path, "old")
    # A limit on file size stands in for the full disk: the write itself fails, in a process of its own.
    script = (
        "import resource, sys; from tangram.cli import run; from tangram.files import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "def command() -> None: write_text(sys.argv[0], 'x' * 5000)\n"
        f"sys.argv = [{str(path)!r}]\n"
        "run(command)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: cannot write {path}: File too large; free space or choose a writable results folder, then run again"
    ]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content" * 100_000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"content" * 100_000).hexdigest()


def test_tensors_come_back_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_tensors(path, TENSORS, {"tangram.command": "here"})
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) and found[name].dtype == TENSORS[name].dtype for name in TENSORS)
    with safe_open(path, framework="pt") as stream:
        assert stream.metadata().items() >= {"format": "pt", "tangram.command": "here"}.items()


def test_equal_tensors_give_equal_bytes_in_whatever_order(tmp_path: Path) -> None:
    metadata = {str(i): str(i) for i in range(20)}  # the library orders them by a hash that differs between writes
    write_tensors(tmp_path / "first", TENSORS, metadata)
    for attempt in range(5):
        write_tensors(tmp_path / "again", dict(reversed(TENSORS.items())), dict(reversed(metadata.items())))
        assert sha256_of(tmp_path / "again") == sha256_of(tmp_path / "first"), attempt


@settings(max_examples=25, deadline=None, derandomize=True)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, place: float, bit: int):
    path = tmp_path_factory.mktemp("flip") / "weights.safetensors"
    write_tensors(path, TENSORS, {"made": "by a test"})
    check_tensors(path)
    content = bytearray(path.read_bytes())
    first = 8 + int.from_bytes(content[:8], "little")
    header = content[8:first].rstrip()
    position = 8 + int(place * (len(header) + len(content) - first))
    content[position if position < 8 + len(header) else position + first - 8 - len(header)] ^= 1 << bit
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))  # whatever the clock's resolution
    with pytest.raises(TangramError, match=r"weights\.safetensors .*; delete it and run again"):
        check_tensors(path)


def test_a_truncated_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_tensors(path, TENSORS, {})
    whole = path.read_bytes()
    for size in (0, 5, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(TangramError, match="delete it and run again"):
            check_tensors(path)


def test_files_of_others_carry_no_checksum_and_pass(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "theirs.safetensors")
    check_tensors(tmp_path / "theirs.safetensors", ours=False)
    with pytest.raises(TangramError, match="does not match its own checksum"):
        check_tensors(tmp_path / "theirs.safetensors")


def test_digests_of_equal_tensors_ignore_metadata(tmp_path: Path) -> None:
    others = [TENSORS | {"a": torch.full((3,), 2.0, dtype=torch.bfloat16)}, TENSORS | {"a": torch.ones(3)}]
    for i, (tensors, command) in enumerate([(TENSORS, "one"), (TENSORS, "two"), *((other, "one") for other in others)]):
        write_tensors(tmp_path / str(i), tensors, {"tangram.command": command})
    digests = [digest_of_tensors(tmp_path / str(i)) for i in range(4)]
    assert sha256_of(tmp_path / "0") != sha256_of(tmp_path / "1")
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_models_of_equal_weights_are_measured_once(tmp_path):
    for name, value in (("parent", 0.0), ("child", 1.0), ("finetuned", 1.0)):
        write_tensors(tmp_path / name / "model.safetensors", {"x": torch.full((2,), value)}, {"name": name})
    models = {name: str(tmp_path / name) for name in ("parent", "child", "finetuned")} | {"missing": None}
    measured: list[str] = []

    def measure(name: str, folder: str) -> str:
        measured.append(name)
        return Path(folder).name

    found = dict(by_weights(models, measure))
    assert found == {"parent": "parent", "child": "child", "finetuned": "child"}
    assert measured == ["parent", "child"]


def test_progress_is_read_by_the_job_that_wrote_it_alone(tmp_path):
    path = tmp_path / "progress.json"
    assert read_progress(path, "one") == {}
    path.write_text('{"identity": "one", "value": 3}')
    assert read_progress(path, "one")["value"] == 3
    assert read_progress(path, "another") == {}
    path.write_text('{"identity": ')
    with pytest.raises(TangramError, match=r"is damaged .*; delete it to start again"):
        read_progress(path, "one")
