from pathlib import Path

import pytest
import torch

from tangram.commands.evaluate_engine import evaluate_engine
from tangram.commands.export_child import export_child
from tangram.engines import PARENT_TYPES
from tangram.evaluation.engine import name_of
from tangram.llama_cpp import find
from tangram.tables import CORPUS, EVALUATION, read_table, write_table


def test_a_file_is_named_by_its_place():
    assert name_of("results/mine/targets/fast/1/export/model.gguf") == ("fast", "1", "finetuned")
    assert name_of("results/mine/engines/parent/q8_0/model.gguf") == ("", "", "parent@q8_0")
    assert name_of("results/mine/targets/parent/0/export/model.gguf") == ("parent", "0", "finetuned")
    assert name_of("results/mine/targets/served/0/export/decilm/model.safetensors") == ("served", "0", "finetuned")


@pytest.mark.skipif(find() is None, reason="no package with llama.cpp is installed")
def test_files_are_evaluated_by_the_engines_own_logits(tiny_parent, tmp_path):
    parent = str(tiny_parent("llama"))
    tokens = torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [
        {"sequence_id": i, "source": "random", "input_ids": ids, "documents": ["a"], "document_starts": [0]}
        for i, ids in enumerate(tokens)
    ]
    corpus, output = tmp_path / "heldout.parquet", tmp_path / "engine.parquet"
    write_table(rows, CORPUS, corpus)
    export_child(parent, "gguf", str(tmp_path / "targets" / "fast" / "0" / "export"))
    files = [str(tmp_path / "targets" / "fast" / "0" / "export" / "model.gguf")]
    for name in PARENT_TYPES:
        folder = tmp_path / "engines" / "parent" / name
        export_child(parent, "gguf", str(folder), name)
        files.append(str(folder / "model.gguf"))
    evaluate_engine('{"evaluation": {}}', files, parent, str(corpus), str(output))
    table = read_table(output, EVALUATION).set_index(["model", "task", "metric"])["value"]
    models = ["finetuned", "parent@f16", "parent@q8_0", "parent@q4_k_m", "parent@q4_0"]
    assert list(dict.fromkeys(table.index.get_level_values("model"))) == models
    kl = [table[model, "heldout", "kl"] for model in models]
    assert kl[0] < 1e-4  # the child is the parent itself, in float32; the engine's cache is F16
    assert kl[1] < 1e-3 < kl[3]
    assert kl[1] < kl[2] < kl[3] < kl[4]
    sizes = [table[model, "file", "bytes"] for model in models]
    assert sizes == [Path(path).stat().st_size for path in files]
    assert sizes == sorted(sizes, reverse=True)
