"""Digests of modules that were parsed before are those of a new parse, and of the source as it is now."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tangram import digests
from tangram.digests import Digests, Module, parse

SOURCE = '"""Text."""\nimport a.b\nfrom .c import d\nfrom ..e import f\nGROUP = "tangram.losses"\n'


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that keeps the digest of `module.py`."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "module.py").write_text(SOURCE)
    path = tmp_path / "cache" / "digests.json"
    first = Digests(path)
    first.of("p.q.module", tmp_path / "module.py", "p.q")
    first.save()
    return path


def of(kept: Path) -> Module:
    return Digests(kept).of("p.q.module", kept.parent.parent / "module.py", "p.q")


def parses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the sources that are parsed from now on."""
    parsed: list[str] = []

    def record(source: str, package: str) -> Module:
        parsed.append(source)
        return parse(source, package)

    monkeypatch.setattr(digests, "parse", record)
    return parsed


def test_imports_are_absolute_names_of_modules_and_objects() -> None:
    module = parse(SOURCE, "p.q")
    assert module.imports == ("a.b", "p.e", "p.e.f", "p.q.c", "p.q.c.d")
    assert module.groups == ("tangram.losses",)


def test_a_kept_digest_is_that_of_a_parse(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = parses(monkeypatch)
    assert of(kept) == parse(SOURCE, "p.q")
    assert parsed == []


def test_a_changed_source_is_parsed_again(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = kept.parent.parent / "module.py"
    changed = SOURCE + "import g\n"
    source.write_text(changed)
    parsed = parses(monkeypatch)
    assert of(kept) == parse(changed, "p.q")
    assert parsed == [changed]


def _of_another_python(text: str) -> str:
    by, known = json.loads(text)
    return json.dumps([["3.10", *by[1:]], known])


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda _: "{}", lambda _: "[1, 2]", _of_another_python])
def test_a_file_that_does_not_fit_counts_as_empty(
    damage: Callable[[str], str], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.write_text(damage(kept.read_text()))
    parsed = parses(monkeypatch)
    assert of(kept) == parse(SOURCE, "p.q")
    assert parsed == [SOURCE]


def test_a_folder_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "module.py").write_text(SOURCE)
    (tmp_path / "cache").write_text("a file where the folder would be")
    known = Digests(tmp_path / "cache" / "digests.json")
    known.of("p.q.module", tmp_path / "module.py", "p.q")
    known.save()
    assert (tmp_path / "cache").is_file()


def test_nothing_is_written_where_bytecode_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "module.py").write_text(SOURCE)
    known = Digests(tmp_path / "cache" / "digests.json")
    known.of("p.q.module", tmp_path / "module.py", "p.q")
    known.save()
    assert not (tmp_path / "cache").exists()
