"""The main job on a tiny Llama: every output, the second run, and the child where this package is not installed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from tiny_run import ROOT, Run

from tangram import tables

pytestmark = pytest.mark.slow

TRAINED = [("attention", "gqa-1"), ("attention", "no-op"), ("ffn", "linear"), ("ffn", "no-op")]
QUANTIZED = [("attention", "parent@int8"), ("ffn", "parent@int8"), ("head", "parent@bf16")]
SHARDS = {"attention": "00-02", "ffn": "00-02", "head": "00-00"}
TABLES = {
    "corpus/{split}.parquet": tables.CORPUS,
    "library/{pieces}.parquet": tables.LIBRARY,
    "library/{trained}.curves.parquet": tables.CURVES,
    "scores/{pieces}.parquet": tables.SCORES,
    "task_scores/{pieces}.parquet": tables.SCORES,
    "scores/layers/00-02.parquet": tables.SCORES,
    "scores.parquet": tables.SCORES,
    "costs/torch/{variant}.parquet": tables.COSTS,
    "costs/torch/attention/parent.parquet": tables.COSTS,
    "costs/torch/ffn/parent.parquet": tables.COSTS,
    "costs/torch/head/parent.parquet": tables.COSTS,
    "costs/torch/model/parent.parquet": tables.COSTS,
    "costs/torch.parquet": tables.COSTS,
    "calibration/torch.parquet": tables.CALIBRATION,
    "targets/small/solutions.parquet": tables.SOLUTIONS,
    "targets/small/{solution}/curves.parquet": tables.CURVES,
    "targets/small/{solution}/evaluation.parquet": tables.EVALUATION,
    "targets/small/{solution}/sequences.parquet": tables.SAMPLES,
    "targets/small/{solution}/tasks.parquet": tables.SAMPLES,
    "targets/small/{solution}/perplexity.parquet": tables.SAMPLES,
    "targets/small/{solution}/long_context.parquet": tables.LONG_CONTEXT,
    "parent_evaluation.parquet": tables.EVALUATION,
    "speeds/torch.parquet": tables.SPEEDS,
    "parent_sequences.parquet": tables.SAMPLES,
    "parent_tasks.parquet": tables.SAMPLES,
    "parent_perplexity.parquet": tables.SAMPLES,
    "parent_long_context.parquet": tables.LONG_CONTEXT,
}
SOLUTIONS = ["0", "layers-dropped"]
CHILDREN = [f"targets/small/{solution}/{stage}" for solution in SOLUTIONS for stage in ("child", "finetuned")]


def expanded(pattern: str) -> list[str]:
    """Return the paths that match a pattern of `TABLES`."""
    values = {
        "{split}": ["distill", "score", "finetune", "heldout"],
        "{pieces}": [f"{kind}/{variant}/{SHARDS[kind]}" for kind, variant in (*TRAINED, *QUANTIZED)],
        "{trained}": [f"{kind}/{variant}/{SHARDS[kind]}" for kind, variant in TRAINED],
        "{variant}": [f"{kind}/{variant}" for kind, variant in (*TRAINED, *QUANTIZED)],
        "{solution}": SOLUTIONS,
    }
    paths = [pattern]
    for name, options in values.items():
        paths = [path.replace(name, option) for path in paths for option in options]
    return list(dict.fromkeys(paths))


def untrained(path: str) -> bool:
    """Return whether a table holds the curves of a piece without trained weights, and so has no rows."""
    return path.endswith(".curves.parquet") and ("/no-op/" in path or "/linear/" in path)


@pytest.mark.parametrize(("pattern", "schema"), TABLES.items(), ids=TABLES)
def test_every_table_has_its_schema_and_rows(run: Run, pattern: str, schema: pa.Schema) -> None:
    for path in expanded(pattern):
        table = tables.read_arrow(run.results / path, schema)
        assert len(table) or untrained(path), path
        assert table.schema.metadata[b"tangram.command"].startswith(b"tangram.commands."), path


def test_no_table_is_left_unchecked(run: Run) -> None:
    known = {path for pattern in TABLES for path in expanded(pattern)}
    assert {str(path.relative_to(run.results)) for path in run.results.rglob("*.parquet")} == known


def test_the_library_holds_the_pieces_and_nothing_of_the_parent(run: Run) -> None:
    from safetensors import safe_open

    modules = {"attention": r"model\.layers\.\d\.self_attn\.", "ffn": r"model\.layers\.\d\.mlp\.", "head": r"lm_head\."}
    for kind, variant in (*TRAINED, *QUANTIZED):
        path = run.results / "library" / kind / variant / f"{SHARDS[kind]}.safetensors"
        with safe_open(path, framework="pt") as stream:
            names = set(stream.keys())
        assert all(re.match(modules[kind], name) for name in names)
        assert bool(names) == (variant != "no-op")


def test_the_child_keeps_its_target(run: Run) -> None:
    from safetensors.torch import load_file

    def parameters(folder: str) -> int:
        return sum(tensor.numel() for tensor in load_file(run.results / folder / "model.safetensors").values())

    for child in CHILDREN:
        assert parameters(child) <= 0.9 * parameters("parent"), child
    architecture = json.loads((run.results / "targets/small/0/architecture.json").read_text())
    assert len(architecture["layers"]) == 3
    assert architecture["sha256"], "an architecture that keeps the target takes pieces from the library"


@pytest.fixture(scope="module")
def generated(run: Run) -> dict[str, int]:
    """Return the number of tokens that each child generates in a process that cannot import this package."""
    script = (
        "import sys; sys.modules['tangram'] = None  # as if it were not installed\n"
        "import torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "for folder in sys.argv[1:]:\n"
        "    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)\n"
        "    text = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)('The parent', return_tensors='pt')\n"
        "    ids = model.generate(**text, max_new_tokens=4, do_sample=False)\n"
        "    print(ids.shape[1] - text['input_ids'].shape[1])"
    )
    command = [sys.executable, "-c", script, *(str(run.results / child) for child in CHILDREN)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=run.folder)
    assert done.returncode == 0, done.stderr
    return dict(zip(CHILDREN, map(int, done.stdout.split()), strict=True))


@pytest.mark.parametrize("child", CHILDREN)
def test_the_child_loads_where_this_package_is_not_installed(generated: dict[str, int], child: str) -> None:
    assert 1 <= generated[child] <= 4


def test_the_readme_s_python_uses_the_child(run: Run) -> None:
    (script,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    written = "results/smollm2-cpu/targets/as-int8/0/finetuned"
    assert written in script
    script = script.replace(written, "results/tiny/targets/small/0/finetuned")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=run.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The capital of France is")


def test_the_report_is_one_page_that_needs_nothing_else(run: Run) -> None:
    page = (run.results / "report.html").read_text()
    assert "tiny" in page
    assert 'src="http' not in page
    assert "<link" not in page


def test_the_summary_is_printed_and_jobs_are_logged_and_timed(run: Run) -> None:
    assert "report.html" in run.printed
    rules = {path.name for path in (run.results / "logs").iterdir()}
    assert rules == {path.name for path in (run.results / "benchmarks").iterdir()}
    assert len(rules) == 30


def test_the_second_run_does_nothing_and_says_so(run: Run) -> None:
    done = run.snakemake("--cores", "2")
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr
    assert not list(Path(run.results).rglob("*.partial"))
