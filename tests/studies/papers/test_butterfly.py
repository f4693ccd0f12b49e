"""The butterfly study: sizes of its controls, and every experiment at a tiny size."""

import dataclasses

import numpy as np
import pytest
import torch

from tangram.models.families import shape_of
from tangram.report.document import Figure
from tangram.tables import CLAIMS, read_table
from tangram_studies.blocks import butterfly as butterfly_block
from tangram_studies.blocks.operators import ButterflyLinear
from tangram_studies.data.fashion_mnist import Images
from tangram_studies.papers import butterfly
from tangram_studies.papers.butterfly import autoencoder, language_model, replacement, sketch, speed, theory
from tangram_studies.papers.butterfly.common import Scale, padded_images
from tangram_studies.papers.butterfly.replacement import Task, network, train_network
from tangram_studies.study import Study, write_study


def images(train=80, test=30):
    random = np.random.default_rng(0)
    labels = [random.integers(0, 10, count).astype(np.uint8) for count in (train, test)]
    pictures = [random.integers(0, 256, (len(own), 28, 28), dtype=np.uint8) for own in labels]
    return Images(pictures[0], labels[0], pictures[1], labels[1])


def task(hidden=64, classes=10, n=20):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, classes, (256,), generator=generator)
    x = torch.nn.functional.one_hot(y, n).float() + 0.1 * torch.randn(256, n, generator=generator)
    return Task(x[:192], y[:192], x[192:], y[192:], hidden, 4)


def weights_of(module):
    return sum(p.numel() for name, p in module.named_parameters() if "bias" not in name)


def test_controls_have_nearly_as_many_weights_as_the_gadget():
    for where, index in (("hidden", 2), ("last", 4)):
        for gadget_arm, control in (("k=n/16", "low rank, weights of n/16"), ("k=log n", "low rank, weights of log n")):
            gadget = network(task(512), f"{where}: {gadget_arm}", 0)[index]
            assert isinstance(gadget, ButterflyLinear)
            low_rank = network(task(512), f"{where}: {control}", 0)[index]
            step = 512 + (512 if where == "hidden" else 10)  # weights of one rank
            assert 0 <= gadget.effective_weights() - weights_of(low_rank) < step
    budget = network(task(512), "hidden: k=n/16", 0)[2].effective_weights()
    narrow = network(task(512), "hidden: narrow dense", 0)
    assert 0 <= budget - weights_of(narrow[2]) < 512
    assert network(task(512), "hidden: k=log n", 0)[2].core.shape == (9, 9)


def test_frozen_factors_stay_and_everything_else_learns():
    for arm in ("hidden: dense", "hidden: k=n/16, frozen J", "hidden: Monarch", "last: k=log n"):
        losses, accuracy = train_network(task(), arm, 0, 1e-2)
        assert np.mean(losses[-3:]) < losses[0]
        assert 0 <= accuracy <= 1
    frozen = network(task(), "hidden: k=n/16, frozen J", 0)[2]
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == ["bias", "core"]


def test_images_are_padded_and_permuted():
    pictures = images().train_images[:5]
    columns = padded_images(pictures, 0)
    assert columns.shape == (1024, 5)
    inside = np.sort(columns.numpy(), axis=0)[-400:]
    np.testing.assert_allclose(inside, np.sort(pictures.reshape(5, -1) / 255.0, axis=1).T[-400:], atol=1e-6)
    assert not torch.equal(columns, padded_images(pictures, 1))


def test_the_study_runs_at_a_tiny_size(monkeypatch, tmp_path):
    scale = Scale((128,), 5, 96, 40, 3, 64, 30, 32, 1, 12, 2, 64)
    monkeypatch.setattr(replacement, "RATES", (1e-3,))
    monkeypatch.setattr(replacement, "SGD_RATES", (0.03,))
    tiny = dataclasses.replace(task(32), epochs=1)
    monkeypatch.setattr(replacement, "_tasks", lambda *_: {"Fashion-MNIST": tiny})
    monkeypatch.setattr(replacement, "_convolutions", lambda features: torch.nn.Linear(20, features))
    drawn: list[str] = []
    for module in (autoencoder, replacement, sketch, speed, theory):
        monkeypatch.setattr(module, "lines_figure", lambda name, *_, **__: drawn.append(name) or Figure("<svg/>", name))
    study = butterfly.reproduce(images(), scale, 2)
    rows = {claim.claim.split()[0] for claim in study.claims}
    assert {name[:-1] if name[-1].isalpha() else name for name in rows} == {str(i) for i in range(1, 11)}
    assert {claim.claim: claim.verdict for claim in study.claims}["2 weights"] == "supported"
    assert {claim.claim: claim.verdict for claim in study.claims}["4 landscape"] == "supported"
    assert len(drawn) == len(set(drawn)) == 7
    write_study(study, tmp_path, {})
    assert len(read_table(tmp_path / "claims.parquet", CLAIMS)) == len(study.claims)


def test_pieces_of_a_language_model(tiny_parent, monkeypatch):
    monkeypatch.setattr(
        language_model,
        "variants_for",
        lambda hidden, kind: {
            "gadget": "butterfly-8",
            "low rank, equal weights": "lowrank-6",
            "low rank, equal rank": "lowrank-8",
            "half random": "ntk-8",
            "no-op": "no-op",
        },
    )
    times = {"butterfly-8": 0.5, "lowrank-6": 0.4, "lowrank-8": 0.6, "no-op": 0.0}
    monkeypatch.setattr(
        language_model,
        "measure",
        lambda parent, kind, variant, *_: [
            {"phase": phase, "seconds": times[variant], "parent_seconds": 2.0} for phase in language_model.PHASES
        ],
    )
    monkeypatch.setattr(butterfly_block, "LEARNING_STEPS", 3)
    parent = tiny_parent("llama")
    tokens = torch.randint(0, 300, (6, 12), generator=torch.Generator().manual_seed(0))
    study = Study("butterfly", "t", "0")
    language_model.compare_pieces(study, parent, tokens[:4], tokens[4:], [0, 1, 2], "cpu", "float32")
    assert [claim.claim[:3] for claim in study.claims] == ["11a", "11b", "11c"]
    assert study.claims[2].measured.startswith("on the front:")
    scores = study.frame("score, ffn")
    assert len(scores) == 5 * shape_of(parent).num_layers
    assert study.frame("cost, attention, decode").set_index("arm")["value"].to_dict() == {
        variant: seconds / 2 for variant, seconds in times.items()
    }


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_compared_variants_have_equal_weights_in_smollm2(kind):
    from tangram.models.operators import structured_linear

    roles = language_model.variants_for(576, kind)
    widths = (
        [(576, 576), (576, 192), (576, 192), (576, 576)] if kind == "attention" else [(576, 1536)] * 2 + [(1536, 576)]
    )

    def weights(role):
        return sum(structured_linear(roles[role], *width, False).stored_weights() for width in widths)

    assert weights("low rank, equal weights") == pytest.approx(weights("gadget"), rel=0.07)


def test_pareto_points():
    assert language_model.pareto({"a": (1, 1), "b": (2, 0.5), "c": (2, 2), "d": (0, 3), "e": (1, 1)}) == [
        "a",
        "b",
        "d",
        "e",
    ]
