"""One trial: the child without middle layers, the text of each draw, and the command."""

import json
from pathlib import Path

import pytest
import torch

from tangram.cli import run
from tangram.commands.try_text import try_text
from tangram.commands.try_texts import try_texts
from tangram.config import Finetune, Packing, Split
from tangram.corpus.build import build_split
from tangram.models.families import decoder_layers
from tangram.models.forward import embed, layer_contexts
from tangram.tables import CORPUS, SAMPLES, TRIALS, read_table, write_table
from tangram.trials.trial import middle_layers, remove_layers
from tangram.trials.verdicts import COMMON, OWN

LENGTH = 16


@pytest.mark.parametrize(
    ("layers", "share", "expected"), [(30, 0.1, range(13, 16)), (3, 0.1, range(1, 2)), (32, 0.2, range(13, 19))]
)
def test_the_removed_layers_are_in_the_middle(layers, share, expected):
    assert middle_layers(layers, share) == expected


def test_a_removed_layer_is_the_identity_in_every_family(parent):
    ids = torch.randint(3, parent.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        hidden = embed(parent, ids)
        first, *contexts = layer_contexts(parent, hidden)
        expected = hidden
        for layer, context in zip(decoder_layers(parent)[1:], contexts, strict=True):
            expected = layer(expected, **context)
        expected = parent.model.norm(expected)
        whole = parent.model(ids, use_cache=False).last_hidden_state
        remove_layers(parent, range(1))
        assert torch.equal(decoder_layers(parent)[0](hidden, **first), hidden)
        assert torch.allclose(parent.model(ids, use_cache=False).last_hidden_state, expected, atol=1e-5)
    assert not torch.allclose(whole, expected, atol=1e-5)
    assert not list(decoder_layers(parent)[0].parameters())


@pytest.fixture
def texts(tmp_path) -> dict[str, dict]:
    """Two sources: of the parent's own text, and of local documents of some words."""
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": f"Story {i}: " + f"the child of {i} met {i * i}. " * 4}) for i in range(120)]
    path.write_text("\n".join(lines))
    return {"own": {"type": "parent-samples"}, "stories": {"type": "local", "paths": [str(path)]}}


def call(monkeypatch, command, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", [command.__name__, *arguments])
    with pytest.raises(SystemExit) as stop:
        run(command)
    return int(stop.value.code or 0)


def trial(monkeypatch, parent: Path, heldout: Path, source: dict, draw: int, output: Path, rate: float = 1e-3) -> int:
    section = Packing(sequence_length=LENGTH).model_dump()
    section |= {"source": source, "tokens": 8 * LENGTH, "heldout_tokens": 3 * LENGTH, "removed": 0.1}
    section |= {"finetune": Finetune(learning_rate=rate).model_dump()}
    files = ["--parent", str(parent), "--corpus", str(heldout), "--output", str(output)]
    return call(monkeypatch, try_text, "--settings", json.dumps(section), "--draw", str(draw), *files)


@pytest.fixture
def heldout(tiny_parent, tmp_path) -> Path:
    split = Split.model_validate({"tokens": 5 * LENGTH, "sources": [{"type": "parent-samples"}]})
    rows = build_split("heldout", split, Packing(sequence_length=LENGTH), tiny_parent("llama"), 0)
    write_table(rows, CORPUS, tmp_path / "heldout.parquet")
    return tmp_path / "heldout.parquet"


def test_trials_end_in_a_table_of_verdicts(tiny_parent, heldout, texts, tmp_path, monkeypatch, capsys):
    parent, paths = tiny_parent("llama"), []
    for name, source in texts.items():
        for draw in range(2):
            paths.append(tmp_path / "trials" / name / f"{draw}.parquet")
            assert trial(monkeypatch, parent, heldout, source, draw, paths[-1]) == 0
    tables = {path: read_table(path, SAMPLES) for path in paths}
    for path, table in tables.items():
        models = {"child", "finetuned"} if path.stem == "0" else {"finetuned"}
        counts = table[table["metric"] == "kl"].groupby(["model", "task"]).size().to_dict()
        assert counts == {(model, text): n for model in models for text, n in ((COMMON, 5), (OWN, 3))}
    own = [tables[path][tables[path]["model"] == "child"] for path in paths if path.stem == "0"]
    common = [table[table["task"] == COMMON]["value"].tolist() for table in own]
    assert common[0] == common[1], "one child and one text for all"
    again = tmp_path / "again.parquet"
    assert trial(monkeypatch, parent, heldout, texts["own"], 0, again) == 0
    assert again.read_bytes() == paths[0].read_bytes()
    assert call(monkeypatch, try_texts, "--output", str(tmp_path / "trials.parquet"), *map(str, paths)) == 0
    rows = read_table(tmp_path / "trials.parquet", TRIALS)
    assert set(rows["candidate"]) == set(texts)
    assert (rows["draws"] == 2).all()
    for row in rows.itertuples():
        parts = [tables[path] for path in paths if path.parent.name == row.candidate]
        after = [part[(part["model"] == "finetuned") & (part["metric"] == "kl")] for part in parts]
        values = [part[part["task"] == row.heldout]["value"].mean() for part in after]
        assert row.kl == pytest.approx(sum(values) / 2)
    assert capsys.readouterr().err.splitlines()[-1].startswith("try_texts: ")


def test_a_rate_of_almost_nothing_leaves_the_child(tiny_parent, heldout, texts, tmp_path, monkeypatch):
    path = tmp_path / "trials" / "own" / "0.parquet"
    assert trial(monkeypatch, tiny_parent("llama"), heldout, texts["own"], 0, path, 1e-30) == 0
    table = read_table(path, SAMPLES)
    before, after = (table[table["model"] == model]["value"].tolist() for model in ("child", "finetuned"))
    assert before == after


def test_draws_have_other_text_and_one_held_out_text(tiny_parent, heldout, texts, tmp_path, monkeypatch):
    built = []

    def record(name, split, packing, parent, seed, *rest):
        rows = build_split(name, split, packing, parent, seed, *rest)
        built.append((name, {document for row in rows for document in row["documents"]}))
        return rows

    monkeypatch.setattr("tangram.corpus.build.build_split", record)
    for draw in range(2):
        output = tmp_path / "trials" / "stories" / f"{draw}.parquet"
        assert trial(monkeypatch, tiny_parent("llama"), heldout, texts["stories"], draw, output) == 0
    assert [name for name, _ in built] == ["finetune", "heldout"] * 2
    (_, first), (_, held), (_, second), (_, same) = built
    assert first != second
    assert held == same
    assert not (first | second) & held


def test_no_texts_to_compare_are_one_line(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, try_texts, "--output", str(tmp_path / "trials.parquet")) == 1
    assert capsys.readouterr().err == "error: text_trials.sources is empty; name at least two texts to compare\n"
