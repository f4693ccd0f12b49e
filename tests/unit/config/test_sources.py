"""Files that the config names: their fingerprint follows their content, or beyond a limit their size and time."""

import json
import os
from pathlib import Path

import pytest

from tangram.config import HubParent, Parent, Split, parse, sources
from tangram.errors import TangramError


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Three files of 10, 20 and 30 bytes."""
    for i in (1, 2, 3):
        (tmp_path / f"{i}").write_bytes(b"x" * 10 * i)
    return {str(i): tmp_path / f"{i}" for i in (1, 2, 3)}


def test_content_and_names_count_and_times_do_not(files: dict[str, Path]) -> None:
    before = sources.fingerprint(files)
    os.utime(files["3"], ns=(1, 1))
    assert sources.fingerprint(dict(reversed(files.items()))) == before
    assert sources.fingerprint({"1": files["1"], "2": files["2"], "other": files["3"]}) != before
    files["1"].write_bytes(b"y" * 10)
    os.utime(files["1"], ns=(1, 1))
    assert sources.fingerprint(files) != before


def test_beyond_the_limit_size_and_time_count(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BY_CONTENT", 30)  # the first two
    before = sources.fingerprint(files)
    os.utime(files["2"], ns=(1, 1))
    assert sources.fingerprint(files) == before
    os.utime(files["3"], ns=(1, 1))
    assert (later := sources.fingerprint(files)) != before
    files["3"].write_bytes(b"y" * 30)
    os.utime(files["3"], ns=(1, 1))
    assert sources.fingerprint(files) == later, "not read"
    files["3"].write_bytes(b"y" * 31)
    os.utime(files["3"], ns=(1, 1))
    assert sources.fingerprint(files) != later
    files["1"].write_bytes(b"y" * 10)
    assert sources.fingerprint(files) != later


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TangramError, match="nowhere cannot be read: No such file"):
        sources.fingerprint({"a": tmp_path / "nowhere"})


def test_a_checkpoints_files_are_those_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    read = {"config.json", "a.safetensors", "merges.txt", "tokenizer.model", "additional_chat_templates/tool.jinja"}
    for name in (*read, "README.md", "pytorch_model.bin"):
        (tmp_path / name).write_text("x")
    assert sources.parent_files(tmp_path).keys() == read


def local_parent(path: Path) -> Parent:
    return Parent.model_validate(
        {
            "source": {"type": "local", "path": str(path)},
            "num_layers": 2,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
        }
    )


def test_a_deleted_parent_counts_as_recorded_if_it_was_fetched(tmp_path: Path) -> None:
    fetched = tmp_path / "results"
    fetched.mkdir()
    parent = local_parent(tmp_path / "parent")
    with pytest.raises(TangramError, match=r"config\.parent\.source\.path: folder '.*parent' does not exist"):
        sources.parent_fingerprint(parent, fetched)
    (tmp_path / "parent").mkdir()
    with pytest.raises(TangramError, match="holds no checkpoint"):
        sources.parent_fingerprint(parent, fetched)
    record = {"source": parent.source.model_dump(mode="json"), sources.RECORD: "as it was"}
    (fetched / "provenance.json").write_text(json.dumps(record))
    assert sources.parent_fingerprint(parent, fetched) == "as it was"
    with pytest.raises(TangramError, match="does not exist"):
        sources.parent_fingerprint(local_parent(tmp_path / "another"), fetched)
    (fetched / "provenance.json").write_text("[")
    with pytest.raises(TangramError, match="holds no checkpoint"):
        sources.parent_fingerprint(parent, fetched)


def test_what_is_elsewhere_has_no_files() -> None:
    hub = HubParent(type="hub", repo="a/b", revision="main")
    parent = Parent(source=hub, num_layers=1, num_attention_heads=1, num_kv_heads=1)
    assert sources.parent_fingerprint(parent, "nowhere") == sources.NONE
    split = Split.model_validate({"tokens": 1, "sources": [{"type": "python-docs"}]})
    assert sources.text_fingerprint("corpus.distill", split.sources, "{}", "nowhere") == sources.NONE
    assert sources.file_fingerprint(None) == sources.file_fingerprint("nowhere.npz") == sources.NONE


def test_a_pattern_without_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.jsonl").mkdir()  # a folder is no text
    paths = [str(tmp_path / "*.txt"), str(tmp_path / "*.jsonl")]
    split = Split.model_validate({"tokens": 1, "sources": [{"type": "local", "paths": paths}]})
    with pytest.raises(TangramError, match=r"config\.corpus\.score: no file matches '.*\*\.jsonl'"):
        sources.text_fingerprint("corpus.score", split.sources, "{}", tmp_path / "none.parquet")


def test_a_local_or_fetched_parents_config_is_known_before_jobs(tiny_config: dict, tmp_path: Path) -> None:
    config = parse(tiny_config)
    assert sources.parent_config(config, tmp_path)["num_hidden_layers"] == 3
    gone = {**tiny_config["parent"], "source": {"type": "local", "path": str(tmp_path / "gone")}}
    config = parse(tiny_config | {"parent": gone})
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 5}')
    assert sources.parent_config(config, tmp_path) is None, "who knows whose that is"
    (tmp_path / "provenance.json").write_text(json.dumps({"source": config.parent.source.model_dump(mode="json")}))
    assert sources.parent_config(config, tmp_path) == {"num_hidden_layers": 5}


def test_files_of_tasks_count_by_content(tmp_path):
    from tangram.config import Evaluation

    def found(*tasks: str) -> str:
        return sources.task_fingerprint("evaluation.tasks", Evaluation(tasks=tasks).all_tasks)

    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("mine.jsonl", "other.jsonl", "task.yaml", "notes.md"):
        (folder / name).write_text(name)
    assert found("arc_easy") == sources.NONE
    alone, together, whole = (found(f"{folder}{name}") for name in ("/mine.jsonl", "/task.yaml", "/"))
    assert together == whole != alone
    (folder / "notes.md").write_text("changed")
    assert (found(f"{folder}/mine.jsonl"), found(f"{folder}/")) == (alone, whole)
    (folder / "other.jsonl").write_text("changed")
    assert found(f"{folder}/mine.jsonl") == alone
    assert found(f"{folder}/task.yaml") != together
    with pytest.raises(TangramError, match=r"config\.evaluation\.tasks: .*none\.jsonl does not exist"):
        found(f"{folder}/none.jsonl")
