"""The sections on pieces, of a run with coupled pairs."""

import json
import shutil

import pytest
from page_parser import Page
from synthetic_run import PRIMARY, settings_of

from tangram.blocks.architecture import load_architecture
from tangram.report.loading import load_results
from tangram.report.page import render_page
from tangram.tables import LIBRARY, SCORES, read_table, write_table

PAIR = "gqa-1+width-0.5"


def test_coupled_pairs_are_told_with_losses_and_scores(complete, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(complete, folder)
    path = folder / "targets" / PRIMARY / "0" / "architecture.json"
    content = json.loads(path.read_text())
    layer = {"attention": "gqa-1", "ffn": "width-0.5", "coupled": True}
    content["layers"][0] = content["layers"][3] = layer
    path.write_text(json.dumps(content))
    row = {"kind": "block", "variant": PAIR, "parameters": 9, "kept": "trained", "tokens": 9, "seconds": 1.0}
    losses = [(0, 0.4, 0.3, "trained"), (1, 0.5, 0.6, "initial"), (2, 0.6, 0.2, "trained")]
    rows = [
        {**row, "layer": i, "bld_loss_before": before, "bld_loss_after": after, "kept": kept}
        for i, before, after, kept in losses
    ]
    write_table(rows, LIBRARY, folder / "library" / "block" / PAIR / "00-02.parquet")
    scores = read_table(folder / "scores.parquet", SCORES)
    kl = scores[scores["metric"] == "kl"].set_index(["layer", "kind", "variant"])["value"]
    for i in range(4):
        total = kl[i, "attention", "gqa-1"] + kl[i, "ffn", "width-0.5"]
        pair = {"layer": i, "kind": "block", "variant": PAIR, "metric": "kl", "value": 0.75 * total}
        scores.loc[len(scores)] = {**pair, "standard_error": 0.01, "tokens": 1024}
    write_table(scores, SCORES, folder / "scores.parquet")
    settings = settings_of()
    results = load_results(folder, settings.model_copy(update={"library": {**settings.library, "block": (PAIR,)}}))
    page = render_page(results)
    assert Page(page).row("training", PAIR) == [PAIR, "0.500", "0.300", "0.750", "2"]
    assert "trained together" in page
    architecture = load_architecture(path)
    others = [kl[piece] for piece in architecture.scored() if piece in kl]
    pairs = [0.75 * (kl[i, "attention", "gqa-1"] + kl[i, "ffn", "width-0.5"]) for i in (0, 3)]
    assert results.sum_of_scores(architecture) == pytest.approx(sum(others) + sum(pairs))
