"""Tasks of lm-eval whose datasets are in the local cache of `datasets`, without network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tangram.tables import SAMPLES, read_table

QUESTIONS = [
    {"question": "Which river is cold?", "choices": ["the long one", "the one from the hills"], "label": 1},
    {"question": "What flows down?", "choices": ["water", "banks", "birds at rest"], "label": 0},
    {"question": "Where do people rest?", "choices": ["the seas", "while", "at its banks", "a hill"], "label": 2},
]


def write_cache(folder: Path) -> None:
    """Write ARC-Easy's form of the questions to the cache as `datasets` does after a download of allenai/ai2_arc."""
    from datasets.packaged_modules.json.json import Json

    lines = []
    for number, question in enumerate(QUESTIONS):
        letters = [*"ABCDE"[: len(question["choices"])]]
        choices = {"text": question["choices"], "label": letters}
        row = {"id": str(number), "question": question["question"], "choices": choices}
        lines.append(json.dumps({**row, "answerKey": letters[question["label"]]}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    files = {split: str(folder / "rows.jsonl") for split in ("train", "validation", "test")}
    cache = folder / "datasets"
    names = {"dataset_name": "ai2_arc", "config_name": "ARC-Easy"}
    Json(cache_dir=str(cache), **names, hash="0" * 40, data_files=files).download_and_prepare()
    # A local file's configuration ends with a hash of its path, and its repository has no owner.
    (written,) = (cache / "ai2_arc").iterdir()
    written.rename(written.with_name("ARC-Easy"))
    (cache / "ai2_arc").rename(cache / "allenai___ai2_arc")


def run(command: str, home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a command without network, with a cache of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment.pop("HF_DATASETS_CACHE", None)
    line = [sys.executable, "-m", f"tangram.commands.{command}", *options]
    return subprocess.run(line, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_cached_hub_dataset_equals_a_file_of_its_questions(tmp_path, tiny_parent):
    """The reference: the same questions as a JSONL file, which has the same prompt."""
    home = tmp_path / "home"
    home.mkdir()
    write_cache(home)
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    tasks, output = str(tmp_path / "tasks.json"), str(tmp_path / "answers.parquet")
    settings = json.dumps({"tasks": ["arc_easy", str(tmp_path / "same.jsonl")]})
    done = run("extract_tasks", home, "--settings", settings, "--output", tasks)
    assert done.returncode == 0, done.stderr
    options = ["--settings", "{}", "--questions", tasks, "--work", str(tmp_path / "work"), "--output", output]
    done = run("evaluate_tasks", home, *options, "--parent", str(tiny_parent("llama")))
    assert done.returncode == 0, done.stderr
    rows = read_table(output, SAMPLES)
    rows = read_table(output, SAMPLES).set_index(["task", "metric", "sample"])["value"]
    hub, file = rows["arc_easy"].sort_index(), rows["same"].sort_index()
    assert sorted(set(hub.index.get_level_values("metric"))) == ["acc", "acc_norm", "chance"]
    assert hub.to_dict() == pytest.approx(file.to_dict())
    assert hub["chance"].tolist() == pytest.approx([1 / len(question["choices"]) for question in QUESTIONS])
