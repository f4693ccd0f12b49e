import json
import shutil
import statistics
from collections import Counter
from pathlib import Path

import pytest

from tangram.commands.measure_speed import measure_speed
from tangram.config import Scenario
from tangram.evaluation.speed import Seconds, speed_rows, time_in_rounds
from tangram.evaluation.torch_speed import fit_together, load_packed, timer
from tangram.tables import SPEEDS, read_table

STOCK, PACKED, CHILD = ("", "", "parent"), ("", "", "packed parent"), ("fast", "0", "child")
REFERENCES = {"speedup": STOCK, "packed_speedup": PACKED}
SCENARIOS = {"tiny": {"prefill": 4, "generate": 2, "batch_sizes": [1, 2]}}
SCENARIO = Scenario(prefill=12, generate=4, batch_sizes=(2,))


def rows_of(seconds, scenario=SCENARIO):
    samples = {
        name: {("chat", batch): [Seconds(*s) for s in rounds] for batch, rounds in by_batch.items()}
        for name, by_batch in seconds.items()
    }
    rows = speed_rows(samples, {"chat": scenario}, REFERENCES)
    return {((row["target"], row["solution"], row["model"]), row["metric"]): row for row in rows}


def test_rates_are_tokens_over_seconds():
    rows = rows_of({STOCK: {2: [(2.0, 6.0), (3.0, 5.0), (4.0, 4.0)]}, CHILD: {2: [(1.0, 3.0), (3.0, 1.0), (1.0, 1.0)]}})
    assert rows[STOCK, "throughput"]["value"] == 2 * (12 + 4) / 8
    assert rows[STOCK, "throughput"]["standard_error"] == 0
    assert rows[STOCK, "prefill_throughput"]["value"] == 2 * 12 / 3
    assert rows[STOCK, "decode_throughput"]["value"] == 2 * 4 / 5
    assert rows[STOCK, "time_to_first_token"]["value"] == 3
    assert rows[CHILD, "throughput"]["value"] == 2 * (12 + 4) / 4
    speedup = rows[CHILD, "speedup"]  # of the rounds: 8/4, 8/4, 8/2
    assert (speedup["value"], speedup["n"], speedup["task"]) == (2, 3, "chat")
    assert speedup["standard_error"] == pytest.approx(1.2533 * statistics.stdev([2, 2, 4]) / 3**0.5, rel=1e-4)
    assert (STOCK, "speedup") not in rows
    assert (CHILD, "packed_speedup") not in rows, "nobody timed the packed parent"


def test_children_are_compared_with_both_parents():
    rows = rows_of({STOCK: {2: [(2.0, 6.0)] * 3}, PACKED: {2: [(1.0, 3.0)] * 3}, CHILD: {2: [(1.0, 1.0)] * 3}})
    ratios = {key: row["value"] for key, row in rows.items() if key[1].endswith("speedup")}
    expected = {
        (PACKED, "speedup"): 2,
        (CHILD, "speedup"): 4,
        (CHILD, "packed_speedup"): 2,
        (STOCK, "packed_speedup"): 0.5,
    }
    assert ratios == expected


def test_each_model_runs_at_its_own_best_batch():
    scenario = Scenario(prefill=12, generate=4, batch_sizes=(1, 4))
    rows = rows_of(
        {STOCK: {1: [(1.0, 1.0)] * 3, 4: [(4.0, 8.0)] * 3}, CHILD: {1: [(1.0, 1.0)] * 3, 4: [(1.0, 1.0)] * 3}}, scenario
    )
    assert rows[STOCK, "throughput"]["value"] == 16 / 2
    assert rows[CHILD, "throughput"]["value"] == 4 * 16 / 2
    assert rows[CHILD, "speedup"]["value"] == 4
    assert rows[STOCK, "throughput_at_4"]["value"] == 4 * 16 / 12
    assert rows[CHILD, "decode_throughput_at_4"]["value"] == 4 * 4
    assert rows[CHILD, "time_to_first_token_at_1"]["value"] == 1


def test_every_round_runs_every_model_once_in_another_order():
    calls = []

    def timed(name):
        def run():
            calls.append(name)
            return {("chat", 2): Seconds(float(len(calls)), 0.0)}

        return run

    names = [("", "", str(i)) for i in range(5)]
    samples = time_in_rounds({name: timed(name) for name in names}, repeats=4, seed=0)
    rounds = [tuple(calls[start : start + 5]) for start in range(0, 20, 5)]
    assert all(Counter(order) == Counter(names) for order in rounds)
    assert len(set(rounds)) > 1
    for name in names:
        assert samples[name]["chat", 2] == [
            Seconds(5.0 * i + order.index(name) + 1, 0.0) for i, order in enumerate(rounds)
        ]


@pytest.fixture
def checkpoints(tiny_parent, tmp_path):
    """A parent, a child of fewer layers for two targets, and one of its parent's shape."""
    folders = {"parent": tiny_parent("llama")}
    small = tiny_parent("llama", num_hidden_layers=1)
    for place, source in {"fast/0": small, "faster/0": small, "fast/layers-dropped": folders["parent"]}.items():
        folders[place] = Path(shutil.copytree(source, tmp_path / "targets" / place / "child"))
    return folders


def test_the_command_times_models_of_equal_shape_once(checkpoints, tmp_path):
    settings = json.dumps({"evaluation": {"throughput_repeats": 3}, "scenarios": SCENARIOS})
    weights = [str(folder / "model.safetensors") for folder in checkpoints.values()]
    measure_speed("torch", settings, str(tmp_path / "speeds.parquet"), weights)
    table = read_table(tmp_path / "speeds.parquet", SPEEDS)
    assert set(table["task"]) == {"tiny"}
    assert (table["value"] > 0).all()
    assert set(table["n"]) == {3}
    values = table.set_index(["target", "solution", "model", "metric"])["value"].to_dict()
    assert len(values) == len(table)
    children = [("fast", "0", "child"), ("faster", "0", "child"), ("fast", "layers-dropped", "child")]
    assert {name[:3] for name in values} == {STOCK, PACKED, *children}
    throughput = {name: values[*name, "throughput"] for name in (STOCK, PACKED, *children)}
    assert throughput[children[0]] == throughput[children[1]]
    assert throughput[children[2]] == throughput[PACKED], "this child is the parent"
    assert len(set(throughput.values())) == 3


@pytest.mark.parametrize("keep", [False, True])
def test_a_kept_model_is_loaded_once(keep, checkpoints):
    loads, lengths = [], []

    def load():
        model = load_packed(checkpoints["parent"], "float32", "cpu")
        loads.append(model)
        model.model.register_forward_pre_hook(
            lambda _, args, kwargs: lengths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
        )
        return model

    scenarios = {"tiny": Scenario(**SCENARIOS["tiny"])}
    run = timer(load, scenarios, 0, "cpu", keep)
    times = [run() for _ in range(3)]
    assert len(loads) == (1 if keep else 3)
    for places in times:
        assert set(places) == {("tiny", 1), ("tiny", 2)}
        assert all(seconds.prefill > 0 and seconds.decode > 0 for seconds in places.values())
    warm = len(loads)  # a prefill and a step warm up after a load
    assert Counter(lengths) == {
        shape: count for batch in (1, 2) for shape, count in {(batch, 4): 3 + warm, (batch, 1): 3 * 2 + warm}.items()
    }


def test_checkpoints_beyond_the_memory_do_not_fit(checkpoints):
    folders = list(checkpoints.values())
    assert fit_together(folders)
    assert not fit_together(folders * 10**5)
