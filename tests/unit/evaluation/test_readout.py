"""Few-label readouts of hidden states: texts, pooling, draws, and the rows of the table."""

import io
import json
import tarfile

import pytest
import torch

from tangram.config import Readout
from tangram.errors import TangramError
from tangram.evaluation.readout import embed_texts, read_classification, read_out, readout_rows
from tangram.models.loading import load_model, load_tokenizer
from tangram.tables import EVALUATION, read_table, write_table

TEXTS = ["A short one.", "A rather longer text, of more tokens than the others have.", "Middling, perhaps.", "x"]


def archive_of(tmp_path, examples):
    content = json.dumps({"examples": examples}).encode()
    path = tmp_path / "bigbench.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("bigbench-1.0.0/bigbench/benchmark_tasks/intents/task.json")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return path


def test_a_classification_is_read(tmp_path):
    examples = [
        {"input": "play", "target_scores": {"music": 1, "book": 0}},
        {"input": "read", "target_scores": {"book": 1, "music": 0}},
    ]
    found = read_classification(archive_of(tmp_path, examples), "intents")
    assert found.texts == ("play", "read")
    assert [found.classes[i] for i in found.labels] == ["music", "book"]


@pytest.mark.parametrize(
    "examples",
    [
        [],
        [{"input": "free", "target": "text"}],
        [{"input": "a", "target_scores": {"x": 1, "y": 0}}, {"input": "b", "target_scores": {"x": 1, "z": 0}}],
    ],
)
def test_what_is_no_classification_is_refused(tmp_path, examples):
    with pytest.raises(TangramError, match="'intents' is no classification"):
        read_classification(archive_of(tmp_path, examples), "intents")


def test_any_seed_of_the_config_draws_labels():
    embeddings, labels = torch.randn(40, 4), torch.arange(40) % 2
    found = read_out(embeddings, labels, Readout(labels=(2,), draws=2), seed=2**63 - 1)  # times 1,000: beyond 2**64
    assert all(len(values) == 2 for values in found.values())


@pytest.mark.parametrize("depth", [0.34, 1.0])
def test_embeddings_are_means_of_hidden_states_in_any_batch(tiny_parent, depth):
    model, tokenizer = load_model(tiny_parent("llama")), load_tokenizer(tiny_parent("llama"))
    found = embed_texts(model, tokenizer, TEXTS, depth, 3, "test")
    states = []
    layer = model.model.layers[round(depth * 3) - 1]
    handle = layer.register_forward_hook(lambda *arguments: states.append(arguments[2]))
    for i, text in enumerate(TEXTS):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            model(ids)
        hidden = states[-1][0]
        torch.testing.assert_close(found[i], hidden[min(1, len(hidden) - 1) :].mean(0), rtol=1e-4, atol=1e-5)
    handle.remove()
    assert len(tokenizer(TEXTS[3])["input_ids"]) == 1  # a text of one token is embedded by it


def test_broken_weights_are_named(tiny_parent):
    model, tokenizer = load_model(tiny_parent("llama")), load_tokenizer(tiny_parent("llama"))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0] = torch.nan
    with pytest.raises(TangramError, match=r"^test: the model's hidden states are not finite"):
        embed_texts(model, tokenizer, TEXTS, 1.0, 2, "test")


SETTINGS = Readout(task="intents", labels=(1, 5), draws=4)


def representation(noise, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat(30)
    return 2 * torch.eye(3, 8)[labels] + noise * torch.randn(90, 8, generator=generator), labels


def test_more_labels_and_clearer_states_read_better():
    clear, noisy = (read_out(*representation(noise), SETTINGS, seed=0) for noise in (0.3, 1.5))
    assert set(clear) == {f"{m}_accuracy, {n} labels" for m in ("nearest", "metric", "linear") for n in (1, 5)}
    for name, values in clear.items():
        assert values.shape == (4,)
        assert values.mean() > noisy[name].mean() + 0.1
    for metric in ("nearest", "linear"):
        one, five = (noisy[f"{metric}_accuracy, {n} labels"].mean() for n in (1, 5))
        assert five > one


def test_a_test_text_is_never_labeled(monkeypatch):
    from tangram.evaluation import readout

    seen = []

    def record(references, labels, queries, truth, **_):
        known = {tuple(row.tolist()) for row in references}
        asked = {tuple(row.tolist()) for row in queries}
        seen.append((len(known), len(asked), bool(known & asked)))
        return 0.0

    for name in ("nearest_neighbor_accuracy", "linear_accuracy"):
        monkeypatch.setattr(readout, name, record)
    monkeypatch.setattr(readout.extensions, "load", lambda *_: record)
    read_out(*representation(0.3), SETTINGS, seed=0)
    assert {(known, asked) for known, asked, _ in seen} == {(3, 36), (15, 36)}
    assert not any(shared for _, _, shared in seen)


def test_differences_are_paired_by_draw(tmp_path):
    parent = {"nearest_accuracy, 5 labels": torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64)}
    child = {"nearest_accuracy, 5 labels": torch.tensor([0.4, 0.6, 0.8], dtype=torch.float64)}
    rows = readout_rows("intents", {"parent": parent, "child": child})
    write_table(rows, EVALUATION, tmp_path / "readout.parquet")
    table = read_table(tmp_path / "readout.parquet", EVALUATION).set_index(["model", "task", "metric"])
    assert table.loc[("child", "intents, 5 labels", "nearest_difference"), "value"] == pytest.approx(-0.1)
    error = table.loc[("child", "intents, 5 labels", "nearest_difference"), "standard_error"]
    assert error == pytest.approx(0, abs=1e-9)
    assert table.loc[("parent", "intents, 5 labels", "nearest_accuracy"), "standard_error"] > 0.1
    assert ("parent", "intents, 5 labels", "nearest_difference") not in table.index


def test_too_few_texts_are_named():
    with pytest.raises(TangramError, match="examples, 40 labels are needed"):
        read_out(*representation(0.3), SETTINGS.model_copy(update={"labels": (40,)}), seed=0)
