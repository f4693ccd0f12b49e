"""The studies of representations from end to end, on artificial images and a tiny parent."""

import copy
import dataclasses
import re
import sys

import numpy as np
import pytest
import torch

from tangram.activations import capture
from tangram.config import Finetune, SpanContrast, Studies
from tangram.corpus.tokens import read_tokens
from tangram.errors import TangramError
from tangram.evaluation.readout import Texts
from tangram.models.loading import load_model
from tangram.tables import CLAIMS, CORPUS, MEASUREMENTS, read_table, write_table
from tangram_studies.experiments import Run, grid
from tangram_studies.metric_learning import spans
from tangram_studies.metric_learning.spans import SpanTerm
from tangram_studies.papers import metric_embedding, span_contrast, spatial_contrast, triplet
from tangram_studies.study import write_study

pytest.importorskip("pytorch_metric_learning")
SETTINGS = Studies(seeds=3)


def write_images(path, side, channels, seed=0):
    """Write images of three classes, each a bright band at its class's height over noise."""
    random = np.random.default_rng(seed)
    arrays = {}
    for split, count in (("train", 150), ("test", 45)):
        labels = np.arange(count, dtype=np.uint8) % 3
        pictures = random.integers(0, 120, (count, side, side, *channels)).astype(np.uint8)
        for picture, label in zip(pictures, labels, strict=True):
            picture[4 + 7 * label : 9 + 7 * label] += 120
        arrays |= {f"{split}_images": pictures, f"{split}_labels": labels}
    np.savez(path, **arrays)
    return str(path)


def check(study, folder, claims):
    """Write the study, and check that claims count all seeds and measurements name all arms."""
    write_study(study, folder, {"tangram.command": "test"})
    table = read_table(folder / "claims.parquet", CLAIMS)
    assert len(table) == claims
    assert set(table["seeds"]) == {SETTINGS.seeds}
    assert (table["low"] <= table["estimate"]).all()
    assert (table["estimate"] <= table["high"]).all()
    page = (folder / "report.html").read_text()
    assert page.count("<svg") >= len(study.figures)
    return read_table(folder / "measurements.parquet", MEASUREMENTS)


def first_settings(arms):
    return {arm: settings[:2] for arm, settings in arms.items()}


def test_triplet(tmp_path, monkeypatch):
    images = write_images(tmp_path / "images.npz", 28, ())
    scale = triplet.Scale(90, 30, 45, 12, 24, 4, 8)
    monkeypatch.setattr(triplet, "ARMS", first_settings(triplet.ARMS))
    rows = check(triplet.reproduce(SETTINGS, scale, images, "cpu", 1), tmp_path / "study", 5)
    main = rows[rows["experiment"] == "embedding"]
    assert set(main["arm"]) == set(triplet.ARMS)
    assert (main.groupby(["arm", "metric"]).size() == SETTINGS.seeds).all()
    pixels = main[(main["arm"] == triplet.PIXELS) & (main["metric"] == "linear accuracy (%)")]["value"]
    assert (pixels > 90).all()  # the bands separate the classes, so labels and images match
    again = triplet.perform(Run(triplet.TRIPLET, {"rate": 1e-3}, 1), images, scale, "cpu")
    once = triplet.perform(Run(triplet.TRIPLET, {"rate": 1e-3}, 1), images, scale, "cpu")
    assert again.scores == once.scores


def test_metric_embedding(tmp_path, monkeypatch):
    images = write_images(tmp_path / "images.npz", 28, ())
    scale = metric_embedding.Scale(30, 45, 8, 6, 8, 2, 8, 60)
    monkeypatch.setattr(metric_embedding, "FEW", first_settings(metric_embedding.FEW))
    monkeypatch.setattr(metric_embedding, "ALL", first_settings(metric_embedding.ALL))
    rows = check(metric_embedding.reproduce(SETTINGS, scale, images, "cpu", 1), tmp_path / "study", 6)
    assert set(rows[rows["experiment"] == metric_embedding.FEW_LABELS]["arm"]) == set(metric_embedding.FEW)
    assert set(rows[rows["experiment"] == metric_embedding.ALL_LABELS]["arm"]) == set(metric_embedding.ALL)


def test_spatial_contrast(tmp_path, monkeypatch):
    pictures = write_images(tmp_path / "pictures.npz", 32, (3,))
    digits = write_images(tmp_path / "digits.npz", 28, ())
    scale = spatial_contrast.Scale(30, 45, 4, 8, 4, 6, 2, 20, (6, 12, 30))
    monkeypatch.setattr(spatial_contrast, "RATES", (1e-3, 3e-3))
    rates = grid(rate=(1e-3, 3e-3))
    arms = {arm: rates for arm in spatial_contrast.PRETRAINING if arm != spatial_contrast.SCRATCH}
    monkeypatch.setattr(spatial_contrast, "PRETRAINING", {**spatial_contrast.PRETRAINING, **arms})
    study = spatial_contrast.reproduce(SETTINGS, scale, pictures, digits, "cpu", 1)
    rows = check(study, tmp_path / "study", 8)
    natural = rows[rows["experiment"] == "natural images"]
    assert set(natural["arm"]) == {*spatial_contrast.ARMS, spatial_contrast.PIXELS}
    finetuned = natural[natural["metric"] == "finetuned accuracy (%)"]
    assert (finetuned.groupby(["arm", "x"]).size() == SETTINGS.seeds).all()
    assert set(finetuned["x"]) == {6, 12, 30}


def test_frozen_features_of_scratch_are_the_untrained_nets(tmp_path):
    pictures = write_images(tmp_path / "pictures.npz", 32, (3,))
    scale = spatial_contrast.Scale(30, 45, 4, 8, 4, 6, 2, 20, (12,))
    run = Run(spatial_contrast.SCRATCH, {"rate": 0.0}, 0)
    rates = {spatial_contrast.SCRATCH: {12: (1e-2,)}}
    trained = spatial_contrast.perform(run, pictures, scale, "cpu", True, rates)
    untrained = spatial_contrast.perform(run, pictures, scale, "cpu", True, {})
    assert trained.scores["frozen linear 12"] == untrained.scores["frozen linear 12"]
    assert "finetuned 12 0.01" in trained.scores


def more_of(study):
    """Return the number of sequences of the longest arm, from the study's notes."""
    return int(re.search(r"between 4 and (\d+) of them", " ".join(study.notes))[1])


def test_span_contrast(tmp_path, tiny_parent):
    parent = load_model(tiny_parent("llama"))
    child = copy.deepcopy(parent)
    with torch.no_grad():
        for i, parameter in enumerate(child.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter += 0.3 * parameter.std() * noise
    child.save_pretrained(tmp_path / "child")
    for split in ("finetune", "score", "heldout"):
        tokens = torch.randint(3, 300, (6, 24), generator=torch.Generator().manual_seed(len(split)))
        made = {"source": "made", "documents": ["d"], "document_starts": [0]}
        rows = [{"sequence_id": i, "input_ids": row, **made} for i, row in enumerate(tokens.tolist())]
        write_table(rows, CORPUS, tmp_path / f"{split}.parquet")
    files = span_contrast.Files(
        str(tiny_parent("llama")),
        str(tmp_path / "child"),
        *(str(tmp_path / f"{split}.parquet") for split in ("finetune", "score", "heldout")),
        "cpu",
        "float32",
    )
    scale = span_contrast.Scale(4, 2, 60)
    texts = Texts(tuple(f"text {i % 3} " * (1 + i % 4) for i in range(60)), torch.arange(60) % 3, ("a", "b", "c"))
    study = span_contrast.reproduce(SETTINGS, scale, Finetune(), files, texts, 1)
    rows = check(study, tmp_path / "study", 8)
    main = rows[rows["experiment"] == "finetuning"]
    plain, more, longer = span_contrast.PLAIN, span_contrast.MORE, span_contrast.LONGER
    assert set(main["arm"]) == {plain, more, longer, *span_contrast.WEIGHTS}
    kl = main[main["metric"] == "kl (nats/token)"].pivot(index="seed", columns="arm", values="value")
    assert kl.nunique(axis=1).min() >= 4  # every arm has a different loss
    assert (kl[longer] >= kl[[plain, more]].min(axis=1) - 1e-9).all()
    assert (kl[longer] <= kl[[plain, more]].max(axis=1) + 1e-9).all()
    seconds = main[main["metric"] == "training (s)"].groupby("arm")["value"].median()
    share = (max(seconds[[plain, *span_contrast.WEIGHTS]]) / seconds[plain] - 1) * 4 / (more_of(study) - 4)
    assert (kl[longer] - kl[plain]).sum() == pytest.approx(share * (kl[more] - kl[plain]).sum(), rel=1e-6)
    # The pipeline's cached states equal those that the study computes.
    tokens = read_tokens(tmp_path / "finetune.parquet")
    capture(parent, tokens, 2, tmp_path / "finetune.npy", "test")
    run = Run(span_contrast.FREE, {"rate": 1e-4, "weight": 0.1, "sequences": 0}, 0)
    found = [
        span_contrast.perform(run, where, Finetune(), scale, None, 5).scores["kl"]
        for where in (files, dataclasses.replace(files, activations=str(tmp_path / "finetune.npy")))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    span_contrast._load.cache_clear()


def test_the_control_pulls_the_spans_that_are_contrasted(monkeypatch):
    """It pools the spans of `SpanTerm`; its loss equals one minus their cosine in a loop."""
    parent, child = torch.randn(2, 3, 40, 8, generator=torch.Generator().manual_seed(0))
    tokens, chosen = torch.arange(3 * 40).reshape(3, 40), torch.tensor([2, 0])
    settings = SpanContrast(weight=1.0, spans=3, shortest=2, longest=4)
    control, term = (kind(settings, parent, tokens, 5) for kind in (spans.PulledSpans, SpanTerm))
    _, one, other = control.pooled(child[chosen], parent[chosen], chosen)
    cosines = torch.cosine_similarity(one[:, None], other[None], dim=-1)
    contrasted = -torch.log_softmax(cosines / settings.temperature, dim=-1).diagonal().mean()
    monkeypatch.setattr(spans, "confusable", lambda drawn, _: torch.eye(len(drawn), dtype=torch.bool))
    torch.testing.assert_close(term(child[chosen], parent[chosen], chosen), contrasted)
    expected = sum(1 - float(a @ b / (a.norm() * b.norm())) for a, b in zip(one, other, strict=True)) / len(one)
    assert control(child[chosen], parent[chosen], chosen).item() == pytest.approx(expected, rel=1e-5)


def test_a_missing_library_is_one_line_before_any_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    for study, files in (
        (triplet, 1),
        (metric_embedding, 1),
        (spatial_contrast, 2),
    ):
        with pytest.raises(TangramError, match=r"^pytorch-metric-learning is missing: pip install"):
            study.reproduce(SETTINGS, study.SCALES["small"], *["there is no such file"] * files, "cpu", 1)


def test_every_full_scale_is_larger():
    for module in (triplet, metric_embedding, spatial_contrast, span_contrast):
        small, full = (dataclasses.astuple(module.SCALES[name]) for name in ("small", "full"))
        assert all(np.max(more) >= np.max(less) for less, more in zip(small, full, strict=True))
