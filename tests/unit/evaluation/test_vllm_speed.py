"""Speed of checkpoints in vLLM."""

import pytest
from export_children import child_on_disk
from tiny_children import LAYERS, MIXED
from tiny_models import write_parent

from tangram import vllm
from tangram.cli import ONE_THREAD
from tangram.commands.export_child import export_child
from tangram.config import Scenario
from tangram.errors import TangramError
from tangram.evaluation.speed import Seconds, speed_rows, time_in_rounds
from tangram.evaluation.vllm_speed import SPEEDUPS, time_model, timed_models

SCENARIOS = {"chat": Scenario(prefill=16, generate=4, batch_sizes=(1, 2))}
CHILD = ("fast", "0", "finetuned")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with a parent and an exported child."""
    folder = tmp_path_factory.mktemp("run")
    write_parent(folder / "parent", num_hidden_layers=LAYERS, head_dim=32, vocab_size=12_000)
    child = child_on_disk(folder / "parent", folder / "child", MIXED)
    export_child(str(child), "decilm", str(folder / "targets" / "fast" / "0" / "export" / "decilm"))
    return folder


def files_of(folder):
    return [str(folder / name / "model.safetensors") for name in ("parent", "targets/fast/0/export/decilm")]


def test_models_have_their_names_and_folders(run):
    functions = timed_models(files_of(run), SCENARIOS, ONE_THREAD)
    assert {name: function.args[1] for (name,), function in functions.items()} == {
        ("", "", "parent"): run / "parent",
        CHILD: run / "targets" / "fast" / "0" / "export" / "decilm",
    }
    assert SPEEDUPS == {"speedup": ("", "", "parent")}


def test_a_decode_has_as_many_steps_as_generated_tokens():
    class Clock:
        scenarios = SCENARIOS

        def times(self, folder, kv_bytes_per_token):
            return {("chat", 2): {"prefill": 0.5, "decode": 0.25}}

    assert time_model(Clock(), "child", 64) == {("chat", 2): Seconds(0.5, 1.0)}


def test_a_parent_of_few_tokens_is_refused(tiny_parent):
    with pytest.raises(TangramError, match="draws tokens below 10000, but the parent's vocabulary has 328"):
        timed_models([str(tiny_parent("llama") / "model.safetensors")], SCENARIOS, ONE_THREAD)


@pytest.mark.skipif(vllm.python() is None, reason=vllm.INSTALL)
def test_child_and_parent_run_in_vllm(run):
    functions = timed_models(files_of(run), SCENARIOS, ONE_THREAD)
    samples = {name: samples for (name,), samples in time_in_rounds(functions, 2, seed=0).items()}
    rows = {(row["model"], row["metric"]): row for row in speed_rows(samples, SCENARIOS, SPEEDUPS)}
    assert rows["finetuned", "speedup"]["n"] == 2
    assert rows["parent", "throughput"]["value"] > 0
    assert rows["finetuned", "throughput"]["value"] > 0
    assert ("parent", "speedup") not in rows


@pytest.mark.skipif(vllm.python() is None, reason=vllm.INSTALL)
def test_a_folder_that_vllm_refuses_is_one_line(run, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    ((_, function),) = timed_models(files_of(run)[:1], SCENARIOS, ONE_THREAD).items()
    with pytest.raises(TangramError, match=r"^vLLM's latency benchmark failed: [^\n]*$"):
        time_model(function.args[0], tmp_path, 64)
