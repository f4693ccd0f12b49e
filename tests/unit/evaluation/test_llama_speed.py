"""Speed of files in llama.cpp."""

import pytest

from tangram.cli import ONE_THREAD
from tangram.commands.export_child import export_child
from tangram.config import Scenario
from tangram.errors import TangramError
from tangram.evaluation.llama_speed import SPEEDUPS, time_file, timed_models
from tangram.evaluation.speed import speed_rows, time_in_rounds
from tangram.llama_cpp import INSTALL, find

pytestmark = pytest.mark.skipif(find() is None, reason=f"llama.cpp: {INSTALL}")
SCENARIOS = {
    "chat": Scenario(prefill=40, generate=3, batch_sizes=(1, 2)),
    "one": Scenario(prefill=4, generate=1, batch_sizes=(1,)),
}


@pytest.fixture(scope="module")
def files(tiny_parent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    places = {folder / "engines" / "parent" / name: name for name in ("f16", "q8_0")}
    places[folder / "targets" / "fast" / "0" / "export"] = None
    for place, floats in places.items():
        export_child(str(tiny_parent("llama")), "gguf", str(place), floats)
    return [str(place / "model.gguf") for place in places]


def test_all_files_are_timed_in_all_scenarios(files):
    functions = timed_models(files, SCENARIOS, ONE_THREAD)
    samples = {name: samples for (name,), samples in time_in_rounds(functions, 2, seed=0).items()}
    assert list(samples) == [("", "", "parent@f16"), ("", "", "parent@q8_0"), ("fast", "0", "finetuned")]
    rows = {(row["model"], row["task"], row["metric"]): row for row in speed_rows(samples, SCENARIOS, SPEEDUPS)}
    for model in ("parent@q8_0", "finetuned"):
        for scenario in SCENARIOS:
            assert rows[model, scenario, "throughput"]["value"] > 0
            assert rows[model, scenario, "speedup"]["n"] == 2
    assert ("parent@f16", "chat", "speedup") not in rows
    prefill, step = rows["finetuned", "chat", "time_to_first_token"], rows["finetuned", "chat", "decode_throughput"]
    assert prefill["value"] > 1 / step["value"], "40 tokens take longer than one"


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(TangramError, match=r"llama\.cpp cannot load"):
        time_file(tmp_path / "model.gguf", SCENARIOS, 1)
