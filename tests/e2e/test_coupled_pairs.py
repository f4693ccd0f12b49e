"""A finished run that goes on with coupled pairs, on a tiny Llama with the real `snakemake` command."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import Run, shown_jobs, snakemake

from tangram.tables import LIBRARY, SCORES, SOLUTIONS, read_table

pytestmark = pytest.mark.slow
PAIRS = ["gqa-1+linear", "no-op+linear"]
CHILD = "targets/small/0/child/model.safetensors"


@pytest.fixture(scope="module")
def coupled(run: Run, copy_of_run: Callable[[], Path]) -> Run:
    """The finished run with two pairs and without FFNs that are no-ops, for a stricter target.

    Without pairs a layer loses at most its attention, half of its weights; the target asks for more.
    """
    folder = copy_of_run()
    target = {"constraints": [{"quantity": "parameters", "max": 0.62}], "compare_layers_dropped": False}
    library = run.config["library"] | {"ffn": ["linear", "parent@int8"], "coupled": {"pairs": PAIRS}}
    evaluation = {"task_archive": run.config["evaluation"]["task_archive"]}  # the questions of scores are from it
    config = run.config | {"evaluation": evaluation, "library": library, "targets": {"small": target}}
    done = snakemake(folder, config, "--cores", "2", f"results/tiny/{CHILD}", "results/tiny/report.html", "-n")
    assert done.returncode == 0, done.stdout + done.stderr
    done = snakemake(folder, config, "--cores", "2", f"results/tiny/{CHILD}")
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(folder, config, done.stdout + done.stderr)


def test_only_jobs_of_pairs_run_before_the_search(coupled: Run) -> None:
    jobs = shown_jobs(coupled.printed)
    pairs = [(rule, message) for rule, message in jobs if rule in ("distill_pairs", "score_blocks")]
    assert sorted(rule for rule, _ in pairs) == ["distill_pairs"] * 2 + ["score_blocks"] * 2
    assert all("kind=block" in message for _, message in pairs)
    others = {rule for rule, _ in jobs} - {"distill_pairs", "score_blocks"}
    of_fewer_variants = {"collect_costs", "calibrate_costs"}
    assert others - of_fewer_variants == {"collect_scores", "solve_mip", "pin_architecture", "assemble_child"}


def test_pairs_are_trained_scored_and_chosen(coupled: Run) -> None:
    results = coupled.results
    for pair in PAIRS:
        table = read_table(results / "library" / "block" / pair / "00-02.parquet", LIBRARY)
        assert set(zip(table["kind"], table["variant"], strict=True)) == {("block", pair)}
        assert len(table) == 3
    scores = read_table(results / "scores.parquet", SCORES)
    assert set(scores[scores["kind"] == "block"]["variant"]) == set(PAIRS)
    solution = read_table(results / "targets" / "small" / "solutions.parquet", SOLUTIONS)
    chosen = solution[solution["kind"] == "block"]
    assert "no-op+linear" in set(chosen["variant"])
    kl = scores[scores["metric"] == "kl"].set_index(["layer", "kind", "variant"])["value"]
    for row in chosen.itertuples():
        assert row.score == pytest.approx(kl[row.layer, "block", row.variant])


def test_the_child_has_the_pairs_weights(coupled: Run) -> None:
    child = load_file(coupled.results / CHILD)
    architecture = json.loads((coupled.results / "targets" / "small" / "0" / "architecture.json").read_text())
    layers = {i: layer for i, layer in enumerate(architecture["layers"]) if layer["coupled"]}
    assert layers
    for i, layer in layers.items():
        pair = f"{layer['attention']}+{layer['ffn']}"
        assert any(key == f"{i:03} ffn {pair}" for key in architecture["sha256"])
        stored = load_file(coupled.results / "library" / "block" / pair / "00-02.safetensors")
        of_layer = {name: tensor for name, tensor in stored.items() if name.startswith(f"model.layers.{i}.")}
        assert of_layer
        assert all(torch.equal(child[name], tensor) for name, tensor in of_layer.items())
