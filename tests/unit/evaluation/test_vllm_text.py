"""Distance from the parent by vLLM's own log-probabilities."""

import pytest
import torch
from export_children import child_on_disk
from tiny_children import LAYERS, MIXED
from tiny_models import write_parent

from tangram import vllm
from tangram.commands.evaluate_engine import evaluate_engine
from tangram.commands.export_child import export_child
from tangram.errors import TangramError
from tangram.evaluation.vllm_text import SEQUENCES, log_probabilities
from tangram.metrics import compare
from tangram.models.loading import load_model
from tangram.tables import CORPUS, EVALUATION, read_table, write_table


def test_a_missing_vllm_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vllm.PYTHON, "/nowhere/python")
    with pytest.raises(TangramError, match=r"^vLLM is not installed; pip install vllm"):
        log_probabilities({"child": "folder"}, [[1, 2]], "float32")


@pytest.mark.skipif(vllm.python() is None, reason=vllm.INSTALL)
def test_a_child_is_evaluated_by_vllms_own_logits(tmp_path) -> None:
    parent, folder = tmp_path / "parent", tmp_path / "targets" / "fast" / "0" / "export" / "decilm"
    write_parent(parent, num_hidden_layers=LAYERS, head_dim=32)
    child = child_on_disk(parent, tmp_path / "child", MIXED)
    export_child(str(child), "decilm", str(folder))
    ids = torch.randint(3, 300, (SEQUENCES + 1, 12), generator=torch.Generator().manual_seed(0))
    rows = [
        {"sequence_id": i, "source": "random", "input_ids": row, "documents": ["a"], "document_starts": [0]}
        for i, row in enumerate(ids.tolist())
    ]
    write_table(rows, CORPUS, tmp_path / "heldout.parquet")
    output, weights = tmp_path / "engine.parquet", folder / "model.safetensors"
    evaluate_engine('{"evaluation": {}}', [str(weights)], str(parent), str(tmp_path / "heldout.parquet"), str(output))
    table = read_table(output, EVALUATION).set_index(["model", "task", "metric"])
    with torch.no_grad():
        logits = [load_model(path)(ids[:SEQUENCES]).logits[:, :-1].flatten(0, 1) for path in (child, parent)]
    expected = compare(*logits, ids[:SEQUENCES, 1:].flatten())
    assert expected["kl"].mean() > 1e-3
    for metric, name in (("kl", "kl"), ("lm_loss", "loss")):
        value = table.loc["finetuned", "heldout", metric]
        assert value["value"] == pytest.approx(expected[name].mean().item(), rel=1e-4), metric
    assert table.loc["finetuned", "file", "bytes"]["value"] == weights.stat().st_size
