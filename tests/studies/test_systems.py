"""The papers' methods in a run of the pipeline, named in its config: on a tiny Llama, through Snakemake."""

import json

import pytest
from tiny_run import Run, snakemake, task_archive

from tangram.tables import CURVES, EVALUATION, LIBRARY, read_table

pytestmark = pytest.mark.slow
ANSWERS = ("warm", "cold")
WEATHER = [
    {
        "input": f"It is {30 * (i % 2)} degrees, day {i}.",
        "target_scores": {answer: int(answer == ANSWERS[i % 2]) for answer in ANSWERS},
    }
    for i in range(30)
]
VARIANTS = {"attention": ["butterfly-8"], "ffn": ["ntk-8", "monarch"]}


@pytest.fixture(scope="module")
def run(tiny_config: dict, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that uses all of these methods."""
    folder = tmp_path_factory.mktemp("systems")
    spans = {"weight": 0.1, "spans": 2, "shortest": 2, "longest": 6}
    small = {"constraints": [{"quantity": "parameters", "max": 0.9}], "solutions": 2, "max_shared": 0.7}
    small |= {"compare_layers_dropped": False}
    config = tiny_config | {
        "library": {**VARIANTS, "bld": {"span_contrast": spans}},
        "targets": {"small": small | {"selection": {"policy": "rucb", "prompt_tokens": 16, "budget": 1.0}}},
        "finetune": tiny_config["finetune"] | {"span_contrast": spans},
        "evaluation": {
            "task_archive": task_archive(folder, "weather", WEATHER),
            "readout": {"task": "weather", "labels": [2], "draws": 2},
        },
    }
    done = snakemake(folder, config, "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(folder, config, done.stdout + done.stderr)


@pytest.mark.parametrize(("kind", "variant"), [(kind, variant) for kind in VARIANTS for variant in VARIANTS[kind]])
def test_a_block_becomes_pieces(run: Run, kind: str, variant: str) -> None:
    (table,) = (run.results / "library" / kind / variant).glob("??-??.parquet")
    assert len(read_table(table, LIBRARY)) == 3
    layers = json.loads((run.results / "targets" / "small" / "0" / "architecture.json").read_text())["layers"]
    assert {layer[kind] for layer in layers} <= {"parent", *VARIANTS[kind]}


def test_a_child_of_such_blocks_takes_their_operators_along(run: Run) -> None:
    folder = run.results / "targets" / "small" / "0" / "finetuned"
    layers = json.loads((folder.parent / "architecture.json").read_text())["layers"]
    assert any(layer[kind] in VARIANTS[kind] for layer in layers for kind in VARIANTS)
    assert (folder / "tangram_studies_blocks_operators.py").exists()
    assert "tangram_studies_blocks_operators" in (folder / "operators.py").read_text()


def test_a_dueling_policy_selects(run: Run) -> None:
    summary = json.loads((run.results / "targets" / "small" / "selection" / "summary.json").read_text())
    assert summary["policy"] == "rucb"
    assert summary["duels"] > 0


def test_the_contrast_of_spans_is_trained(run: Run) -> None:
    finetuned = read_table(run.results / "targets" / "small" / "0" / "curves.parquet", CURVES)
    distilled = read_table(next((run.results / "library" / "ffn" / "ntk-8").glob("*.curves.parquet")), CURVES)
    for curves in (finetuned, distilled):
        losses = curves[curves["metric"] == "span_contrast"]["value"]
        assert losses.min() >= 0  # 0 where all spans of a step overlap: none is contrasted
        assert losses.max() > 0


def test_the_metric_embedding_reads_classes(run: Run) -> None:
    table = read_table(run.results / "targets" / "small" / "0" / "readout.parquet", EVALUATION)
    assert {"nearest_accuracy", "metric_accuracy", "linear_accuracy"} <= set(table["metric"])
    assert {"parent", "child", "finetuned"} == set(table["model"])
