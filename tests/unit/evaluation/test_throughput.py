import statistics

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tangram.config import Scenario
from tangram.evaluation.throughput import measure_throughput, throughput_rows
from tangram.tables import EVALUATION, read_table, write_table

SCENARIO = Scenario(prefill=12, generate=4, batch_sizes=(2,))


def test_rates_are_tokens_over_seconds():
    seconds = {"parent": ([2.0, 3.0, 4.0], [6.0, 5.0, 4.0]), "child": ([1.0, 3.0, 1.0], [3.0, 1.0, 1.0])}
    rows = {(row["model"], row["metric"]): row for row in throughput_rows(seconds, "chat", SCENARIO, batch=2)}
    assert rows["parent", "throughput"]["value"] == 2 * (12 + 4) / 8
    assert rows["parent", "throughput"]["standard_error"] == 0
    assert rows["parent", "prefill_throughput"]["value"] == 2 * 12 / 3
    assert rows["parent", "decode_throughput"]["value"] == 2 * 4 / 5
    assert rows["child", "throughput"]["value"] == 2 * (12 + 4) / 4
    speedup = rows["child", "speedup"]  # of the turns: 8/4, 8/4, 8/2
    assert (speedup["value"], speedup["n"], speedup["task"]) == (2, 3, "chat")
    assert speedup["standard_error"] == pytest.approx(1.2533 * statistics.stdev([2, 2, 4]) / 3**0.5, rel=1e-4)
    assert ("parent", "speedup") not in rows


def test_children_are_compared_with_both_parents():
    seconds = {
        "parent": ([2.0, 3.0, 4.0], [6.0, 5.0, 4.0]),
        "packed parent": ([1.0, 1.0, 2.0], [3.0, 3.0, 2.0]),
        "child": ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
    }
    rows = throughput_rows(seconds, "chat", SCENARIO, batch=2)
    ratios = {(r["model"], r["metric"]): r["value"] for r in rows if r["metric"].endswith("speedup")}
    assert ratios == {("packed parent", "speedup"): 2, ("child", "speedup"): 4, ("child", "packed_speedup"): 2}


def test_models_are_measured_end_to_end(tmp_path):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 40}
    models = {
        name: LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, num_hidden_layers=layers)).eval()
        for name, layers in (("parent", 2), ("child", 1))
    }
    lengths: dict[str, list[tuple[int, int]]] = {name: [] for name in models}
    for name, model in models.items():
        model.model.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: lengths[name].append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
        )
    rows = measure_throughput(models, "chat", SCENARIO, batch=2, repeats=3, vocabulary=40, seed=0)
    write_table(rows, EVALUATION, tmp_path / "evaluation.parquet")
    table = read_table(tmp_path / "evaluation.parquet", EVALUATION)
    metrics = ["throughput", "prefill_throughput", "decode_throughput"]
    assert list(table.metric) == [*metrics, *metrics, "speedup"]
    assert (table.value > 0).all()
    assert set(table.n) == {3}
    for shapes in lengths.values():  # whole prompts, and single tokens in multiples of the generated length
        assert set(shapes) == {(2, 12), (2, 1)}
        assert shapes.count((2, 1)) % SCENARIO.generate == 0
