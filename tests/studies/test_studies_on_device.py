"""Studies on a device: operators without activations, sketches, networks on images, the span study."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pretend_device import pretend

from tangram.config import Finetune
from tangram.corpus.tokens import read_tokens
from tangram.evaluation.readout import Texts
from tangram.models.loading import load_model
from tangram.models.operators import LowRankLinear, structured_linear
from tangram.tables import CORPUS, write_table
from tangram_studies.blocks import butterfly as butterfly_block
from tangram_studies.blocks.fitting import from_dense
from tangram_studies.blocks.hybrid import LowRankPlusButterfly
from tangram_studies.blocks.operators import ButterflyLinear, MonarchLinear, NTKFactorLinear
from tangram_studies.blocks.sketching import EncoderDecoderButterfly, LearnedSketch, two_phase_fit
from tangram_studies.experiments import Run
from tangram_studies.papers import metric_embedding, span_contrast, spatial_contrast, triplet
from tangram_studies.papers.butterfly import language_model
from tangram_studies.study import Study


def on_both(run, computes=True):
    """Call a function on the CPU and on the device; return both results."""
    here = run(device="cpu")
    with pretend() as products:
        there = run(device="cuda")
    assert bool(products["cuda"]) == computes
    return here, there


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", ["butterfly-4", "lowrank-4", "ntk-4", "monarch"])
def test_an_operator_begins_from_a_matrix_alone(variant):
    def run(device):
        torch.manual_seed(0)
        operator = structured_linear(variant, 32, 64, False).to(device)
        from_dense(operator, random(64, 32).to(device), None, 2)
        return operator(torch.eye(32, device=device)).cpu()

    torch.testing.assert_close(*on_both(run), rtol=1e-4, atol=1e-5)


OPERATORS = {
    "butterfly": lambda: ButterflyLinear(24, 20, 6, 10, bias=True),
    "butterfly, random rows": lambda: ButterflyLinear(12, 20, 5, 7, truncation="random", init="ortho"),
    "butterfly, padded": lambda: ButterflyLinear(12, 20, 5, 7, padding="power-of-2"),
    "butterfly, free": lambda: ButterflyLinear(16, 16, 8, 8, free=True, init="identity"),
    "low rank and butterfly": lambda: LowRankPlusButterfly(12, 20, 2, 5, 7),
    "low rank": lambda: LowRankLinear(12, 20, 3),
    "Monarch": lambda: MonarchLinear(12, 20, bias=True),
    "factors, V random": lambda: NTKFactorLinear(12, 20, 4),
    "factors, U random": lambda: NTKFactorLinear(12, 20, 4, fixed="U", sketch="fjlt"),
}


@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)
def test_an_operator_is_built_and_run_in_all_of_its_forms(make):
    def run(device):
        torch.manual_seed(0)
        with torch.device(device):
            operator = make()
        x = random(7, operator.in_features).to(device)
        operator(x).square().mean().backward()
        gradients = [weight.grad for weight in operator.parameters()]
        with torch.no_grad():
            forms = [operator.compute(form, x, *operator.tensors(form)) for form in operator.kernels]
            return [tensor.cpu() for tensor in (*forms, operator(x), operator.matrix(), *gradients)]

    for one, other in zip(*on_both(run), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_a_butterfly_encodes_and_decodes():
    def run(device):
        model = EncoderDecoderButterfly(16, 8, 4, 12).to(device)
        return two_phase_fit(model, random(16, 20).to(device), random(12, 20, seed=1).to(device), 3, 1e-2)

    (first, curve), (other_first, other_curve) = on_both(run)
    assert [other_first, *other_curve] == pytest.approx([first, *curve], rel=1e-4)


@pytest.mark.parametrize("pattern", ["butterfly", "sparse", "dense"])
def test_a_sketch_is_learned(pattern):
    def run(device):
        return LearnedSketch(16, 6, pattern).to(device).fit(random(5, 16, 8).to(device), 2, 3, 1e-2, 2)

    here, there = on_both(run)
    assert there == pytest.approx(here, rel=1e-4)


def images(path: Path, side: int, *channels: int) -> str:
    """Write images of three classes, each a bright band at its class's height over noise; return their file."""
    draws, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 90), ("test", 45)):
        labels = np.arange(count, dtype=np.uint8) % 3
        pictures = draws.integers(0, 120, (count, side, side, *channels)).astype(np.uint8)
        for picture, label in zip(pictures, labels, strict=True):
            picture[4 + 7 * label : 9 + 7 * label] += 120
        arrays |= {f"{split}_images": pictures, f"{split}_labels": labels}
    np.savez(path, **arrays)
    return str(path)


def assert_alike(here, there):
    """Compare outcomes: rounding may change accuracies by one or two images."""
    assert there.scores == pytest.approx(here.scores, abs=0.05)
    assert [value for _, value in there.curve] == pytest.approx([value for _, value in here.curve], abs=0.05)


@pytest.mark.parametrize("arm", triplet.ARMS)
def test_triplets(arm, tmp_path):
    pytest.importorskip("pytorch_metric_learning")
    path, scale = images(tmp_path / "images.npz", 28), triplet.Scale(45, 30, 45, 4, 12, 4, 8)
    run = Run(arm, triplet.ARMS[arm][0], 0)
    assert_alike(*on_both(lambda device: triplet.perform(run, path, scale, device), arm != triplet.PIXELS))


@pytest.mark.parametrize("arm", metric_embedding.FEW)
def test_metric_embeddings(arm, tmp_path):
    pytest.importorskip("pytorch_metric_learning")
    all_labels = arm in metric_embedding.ALL
    path, scale = images(tmp_path / "images.npz", 28), metric_embedding.Scale(30, 45, 4, 6, 8, 2, 8, 60)
    run = Run(arm, metric_embedding.FEW[arm][0], 0)
    one, other = on_both(
        lambda device: metric_embedding.perform(run, path, scale, device, all_labels), arm != metric_embedding.PIXELS
    )
    assert_alike(one, other)


@pytest.mark.parametrize("arm", [*spatial_contrast.ARMS, spatial_contrast.PIXELS])
def test_spatial_contrasts(arm, tmp_path):
    pytest.importorskip("pytorch_metric_learning")
    path, scale = images(tmp_path / "images.npz", 32, 3), spatial_contrast.Scale(30, 45, 3, 8, 3, 6, 2, 20, (12,))
    run, rates = Run(arm, {"rate": 1e-3}, 0), {arm: {12: (1e-3,)}}
    assert_alike(*on_both(lambda device: spatial_contrast.perform(run, path, scale, device, True, rates)))


@pytest.fixture
def tokens(tmp_path):
    """Write a split's table."""
    ids = torch.randint(3, 300, (4, 24), generator=torch.Generator().manual_seed(1))
    facts = {"source": "made", "documents": ["d"], "document_starts": [0]}
    rows = [{"sequence_id": i, "input_ids": row, **facts} for i, row in enumerate(ids.tolist())]
    write_table(rows, CORPUS, tmp_path / "corpus.parquet")
    return str(tmp_path / "corpus.parquet")


@pytest.mark.parametrize("arm", span_contrast.WEIGHTS)
def test_spans_are_contrasted(arm, tiny_parent, tokens, tmp_path):
    parent, child = str(tiny_parent("llama")), load_model(tiny_parent("llama"))
    with torch.no_grad():
        for i, parameter in enumerate(child.parameters()):
            parameter += 0.3 * parameter.std() * random(*parameter.shape, seed=i)
    child.save_pretrained(tmp_path / "child")
    texts = Texts(tuple(f"text {i % 3} " * (1 + i % 4) for i in range(30)), torch.arange(30) % 3, ("a", "b", "c"))
    run = Run(arm, {"rate": 1e-3, "weight": 0.5, "sequences": 0}, 0)

    def perform(device):
        files = span_contrast.Files(parent, str(tmp_path / "child"), tokens, tokens, tokens, device, "float32")
        read = texts if arm == span_contrast.PULLED else None
        return span_contrast.perform(run, files, Finetune(), span_contrast.Scale(4, 2, 30), read, 1)

    assert_alike(*on_both(perform))
    span_contrast._load.cache_clear()


def test_operators_are_scored_in_a_model(tiny_parent, tokens, monkeypatch):
    monkeypatch.setattr(butterfly_block, "LEARNING_STEPS", 1)

    def run(device):
        study = Study("butterfly", "", "")
        ids = read_tokens(tokens)
        language_model.score_pieces(study, tiny_parent("llama"), ids, ids, [1], device, "float32")
        return [row["value"] for row in study.measurements]

    here, there = on_both(run)
    assert there == pytest.approx(here, rel=1e-2)
