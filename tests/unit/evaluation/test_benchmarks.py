import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tangram.config import Evaluation, PackageFile
from tangram.errors import TangramError
from tangram.evaluation import benchmarks
from tangram.evaluation.benchmarks import read_questions, resolve
from tangram.evaluation.tasks import BIG_BENCH_PROMPT, Benchmark, Question

YAML = "task: mine\ndataset_path: json\n"
QUESTION = {"question": "a?", "choices": ["x", "y"], "label": 1}


def written(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def resolved(*tasks: object, **settings: object) -> dict[str, Benchmark]:
    return resolve(Evaluation.model_validate({"tasks": [*tasks], **settings}))


def test_lines_of_questions_have_the_documented_forms(tmp_path):
    arc = written(tmp_path / "arc.jsonl", QUESTION, {"question": "b?", "choices": ["x", "y", "z"], "label": 0})
    piqa = written(tmp_path / "piqa.jsonl", {"goal": "b?", "choices": ["x", "y"], "label": 0})
    cloze = written(tmp_path / "cloze.jsonl", {"context": "It is", "choices": ["x", "y"], "label": 0})
    words = written(tmp_path / "words.jsonl", {"question": "a?", "answer": 42, "source": "made up"})
    prompt = "Question: {{input}}\nAnswer:"
    assert read_questions(arc) == Benchmark((Question("a?", ("x", "y"), 1), Question("b?", ("x", "y", "z"), 0)), prompt)
    assert read_questions(piqa) == Benchmark((Question("b?", ("x", "y"), 0),), prompt)
    assert read_questions(cloze).prompt == "{{input}}"
    assert read_questions(words) == Benchmark((Question("a?", ("42",), 0),), prompt)


FAULTS = {
    "no JSON": ("nonsense", "does not fit"),
    "no object": ("3", "does not fit"),
    "no question": (json.dumps({"text": "a"}), "does not fit"),
    "no label": (json.dumps({"question": "a", "choices": ["x", "y"]}), "does not fit ('label')"),
    "a label beyond": (json.dumps({**QUESTION, "label": 2}), "label 2 is no index of the choices"),
    "a label before": (json.dumps({**QUESTION, "label": -1}), "label -1 is no index"),
    "a letter": (json.dumps({**QUESTION, "label": "A"}), "label 'A' is no index"),
    "one choice": (json.dumps({**QUESTION, "choices": ["x"]}), "choices must be two texts or more"),
    "text as choices": (json.dumps({**QUESTION, "choices": "xy"}), "choices must be two texts or more"),
    "two forms": (json.dumps(QUESTION) + "\n" + json.dumps({"question": "a", "answer": "b"}), "mixes forms"),
    "nothing": ("\n", "has no question"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_line_that_does_not_fit_is_named_with_the_schema(fault, tmp_path):
    content, expected = FAULTS[fault]
    path = tmp_path / "task.jsonl"
    path.write_text(content)
    with pytest.raises(TangramError) as caught:
        read_questions(path)
    assert str(caught.value).startswith(f"config.evaluation.tasks: {path}")
    assert expected in str(caught.value)
    assert "a line is {" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_files_and_names_become_tasks_in_order(tmp_path):
    plain, yamls = tmp_path / "plain", tmp_path / "yamls"
    for folder in (plain, yamls):
        folder.mkdir()
        written(folder / "b.jsonl", QUESTION)
    written(plain / "a.jsonl", QUESTION)
    (yamls / "_default.yaml").write_text("dataset_path: json\n")
    (yamls / "one.yaml").write_text("include: _default.yaml\ntask: mine\n")
    found = resolved("hellaswag", f"{plain}/", str(yamls / "one.yaml"), {"name": f"{yamls}/", "num_fewshot": 5})
    assert list(found) == ["hellaswag", "a", "b", "mine", "mine (5-shot)"]
    assert found["hellaswag"] == Benchmark(source="hellaswag")
    assert found["b"].questions == (Question("a?", ("x", "y"), 1),)
    assert found["mine (5-shot)"] == Benchmark(source=str(yamls / "one.yaml"), num_fewshot=5)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: [f"{folder}/none.jsonl"], "none.jsonl does not exist"),
        (lambda folder: [f"{folder}/"], "holds no .yaml or .jsonl file"),
        (lambda folder: [str(written(folder / "a.jsonl", QUESTION)), f"{folder}/"], "'a' appears twice"),
        (lambda folder: [str(written(folder / "mean.jsonl", QUESTION))], "'mean' is the name of a row of the report"),
        (lambda folder: [_text(folder / "x.yaml", "dataset_path: json\n")], "x.yaml defines no task of lm-eval"),
        (lambda folder: [_text(folder / "x.yaml", "task: [\n")], "x.yaml cannot be read"),
    ],
)
def test_paths_without_tasks_are_one_line(make, expected, tmp_path):
    with pytest.raises(TangramError) as caught:
        resolved(*make(tmp_path))
    assert str(caught.value).startswith("config.evaluation.tasks: ")
    assert expected in str(caught.value)


def _text(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


def test_a_name_is_the_archive_s_task_first_and_then_lm_eval_s(tmp_path, monkeypatch):
    archive = tmp_path / "bigbench-1.0.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        content = json.dumps({"examples": [{"input": "a?", "target_scores": {"x": 0, "y": 1}}]}).encode()
        info = tarfile.TarInfo("bigbench-1.0.0/bigbench/benchmark_tasks/group/first/task.json")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    monkeypatch.setattr(benchmarks, "fetch_archive", lambda source: archive)
    package = PackageFile(package="bigbench==1.0.0", format="sdist", archive_sha256="0" * 64)
    found = resolved("group/first", "arc_easy", task_archive=package)
    assert found["group/first"] == Benchmark((Question("a?", ("x", "y"), 1),), BIG_BENCH_PROMPT)
    assert found["arc_easy"] == Benchmark(source="arc_easy")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("arc_easy", "'arc_easy' cannot be loaded"),
        ("arc_eazy", "neither task_archive nor lm-eval has 'arc_eazy'; did you mean 'arc_easy'?"),
    ],
)
def test_a_task_that_is_not_there_offline_is_one_line(task, expected, tmp_path):
    command = [sys.executable, "-m", "tangram.commands.extract_tasks", "--settings", json.dumps({"tasks": [task]})]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "q.json")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert expected in done.stderr
    if task == "arc_easy":
        assert "HF_HUB_OFFLINE is set, its dataset must be in the cache of `datasets`" in done.stderr
