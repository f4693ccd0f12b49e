"""A whole run on a tiny Llama, through the real `snakemake` command, once for all tests and all of pytest's workers."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_run import CURVES, PIECE, Run, snakemake, task_archive

NUMBERS = [
    {"input": f"Which of these is the number {i}?", "target_scores": {str(i): 1, str(i + 1): 0, "none": 0}}
    for i in range(6)
]
LETTERS = [{"question": f"Which letter has the number {i}?", "choices": list("xyz"), "label": i % 3} for i in range(24)]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder shared by all workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def tiny_config(tiny_parent: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A config for a three-layer Llama that trains for seconds and downloads nothing."""
    sampled = [{"type": "parent-samples", "batch_size": 8}]
    documents = [{"text": f"Document {i} tells of the number {i}, of {i + 1} and of {i * i}."} for i in range(64)]
    text_file = tmp_path_factory.mktemp("text") / "documents.jsonl"
    text_file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return {
        "run": "tiny",
        "seed": 1,
        "parent": {
            "source": {"type": "local", "path": str(tiny_parent("llama"))},
            "num_layers": 3,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
        },
        "corpus": {
            "sequence_length": 32,
            "distill": {"tokens": 512, "sources": sampled},
            "score": {"tokens": 128, "sources": sampled},
            "finetune": {"tokens": 256, "sources": sampled},
            "heldout": {"tokens": 128, "sources": [*sampled, {"type": "local", "paths": [str(text_file)]}]},
        },
        "library": {
            "attention": ["gqa-1", "no-op", "parent@int8"],
            "ffn": ["linear", "no-op", "parent@int8"],
            "head": ["parent@bf16"],
        },
        "scenarios": {"chat": {"prefill": 16, "generate": 4, "batch_sizes": [1]}},
        "costs": {"stack_megabytes": 1, "repeats": 3},
        "targets": {
            "small": {"constraints": [{"quantity": "parameters", "max": 0.9}]},
        },
        "primary_target": "small",
        "finetune": {"batch_size": 2, "micro_batch_size": 2},
    }


@pytest.fixture(scope="session")
def run(shared: Path, request: pytest.FixtureRequest) -> Run:
    """The finished run of the whole pipeline."""
    folder, finished = shared / "run", shared / "run.json"
    with FileLock(shared / "run.lock"):
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (folder / "text.txt").write_text("One line of text, and another one. " * 20)
            text = {"name": "text", "source": {"type": "local", "paths": [str(folder / "text.txt")]}, "max_length": 16}
            evaluation = {"tasks": ["numbers"], "task_archive": task_archive(folder, "numbers", NUMBERS)}
            evaluation["perplexity"] = [text]
            evaluation["long_context"] = {"lengths": [120], "tasks": ["needle"], "choices": 2, "questions": 4}
            (folder / "letters.jsonl").write_text("".join(json.dumps(letter) + "\n" for letter in LETTERS))
            scores = {"tasks": {"names": [str(folder / "letters.jsonl")], "questions": 4}}
            config = request.getfixturevalue("tiny_config") | {"evaluation": evaluation, "scores": scores}
            process = snakemake(folder, config, "--cores", "2")
            assert process.returncode == 0, process.stdout + process.stderr
            run = Run(folder, config, process.stdout + process.stderr)
            finished.write_text(json.dumps(asdict(run), default=str))
        fields = json.loads(finished.read_text())
    return Run(Path(fields["folder"]), fields["config"], fields["printed"])


@pytest.fixture(scope="session")
def slow_config(run: Run) -> dict:
    """The finished run's config with trainings of some seconds, so that tests can kill them."""
    library = run.config["library"] | {"bld": {"epochs": 200, "checkpoint_seconds": 1}}
    finetune = {"budget": {"epochs": 100}, "checkpoint_seconds": 1, "batch_size": 2, "micro_batch_size": 1}
    return run.config | {"library": library, "finetune": finetune}


@pytest.fixture(scope="session")
def copy_of_run(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Return a function that copies the finished run into a new folder."""

    def copy() -> Path:
        folder = tmp_path_factory.mktemp("copy") / "run"
        shutil.copytree(run.folder, folder, symlinks=True)
        return folder

    return copy


@pytest.fixture(scope="session")
def undisturbed(shared: Path, copy_of_run: Callable[[], Path], slow_config: dict) -> Path:
    """A run with the slow config and without interruptions, the reference of fault tests."""
    folder = shared / "undisturbed"
    with FileLock(shared / "undisturbed.lock"):
        if not folder.exists():
            copy = copy_of_run()
            for target in (PIECE, CURVES):
                process = snakemake(copy, slow_config, "--cores", "2", target)
                assert process.returncode == 0, process.stderr
            copy.rename(folder)
    return folder
