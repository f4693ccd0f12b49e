import json
from pathlib import Path

import pytest
import torch

from tangram.commands.evaluate_engine import evaluate_engine
from tangram.commands.export_child import export_child
from tangram.config import Scenario
from tangram.evaluation.engine import REFERENCE, speed_rows
from tangram.llama_cpp import find
from tangram.tables import CORPUS, EVALUATION, read_table, write_table

CHAT = Scenario(prefill=6, generate=2, batch_sizes=(1, 2))


def test_throughput_and_speedup_are_of_the_same_round():
    seconds = {REFERENCE: ([2.0, 4.0, 2.0], [2.0, 4.0, 2.0]), "finetuned": ([1.0, 2.0, 1.0], [1.0, 2.0, 1.0])}
    rows = {(row["model"], row["metric"]): row for row in speed_rows(seconds, "chat", CHAT, batch=4)}
    assert rows["finetuned", "speedup"]["value"] == 2
    assert rows["finetuned", "speedup"]["standard_error"] == 0  # both were slow in the second round
    assert rows[REFERENCE, "throughput"]["value"] == 4 * 8 / 4
    assert rows["finetuned", "prefill_throughput"]["value"] == 4 * 6
    assert rows["finetuned", "decode_throughput"]["value"] == 4 * 2
    assert rows["finetuned", "time_to_first_token"]["value"] == 1


@pytest.mark.skipif(find() is None, reason="no package with llama.cpp is installed")
def test_a_child_is_evaluated_beside_the_parents_files(tiny_parent, tmp_path):
    parent, export = str(tiny_parent("llama")), tmp_path / "export"
    tokens = torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [
        {"sequence_id": i, "source": "random", "input_ids": ids, "documents": ["a"], "document_starts": [0]}
        for i, ids in enumerate(tokens)
    ]
    write_table(rows, CORPUS, tmp_path / "heldout.parquet")
    export_child(parent, "gguf", str(export))
    settings = {
        "evaluation": {"throughput_repeats": 3},
        "scenarios": {"chat": CHAT.model_dump(mode="json")},
    }
    output = tmp_path / "engine.parquet"
    evaluate_engine(
        json.dumps(settings), str(export / "model.gguf"), parent, str(tmp_path / "heldout.parquet"), str(output)
    )
    table = read_table(output, EVALUATION).set_index(["model", "task", "metric"])["value"]
    models = ["parent@f16", "parent@q8_0", "parent@q4_0", "finetuned"]
    assert list(dict.fromkeys(table.index.get_level_values("model"))) == models
    kl = [table[model, "heldout", "kl"] for model in models]
    assert kl[3] < 1e-4  # the child is the parent itself, in float32; the engine's cache is F16
    assert kl[0] < 1e-3 < kl[2]
    assert kl[1] < kl[2]
    assert table["finetuned", "file", "bytes"] == Path(export / "model.gguf").stat().st_size
    assert all(table[model, "chat", "throughput"] > 0 for model in models)
    assert table["parent@f16", "chat", "speedup"] == 1
