"""Readouts, networks, and their training with the pipeline's loop."""

import pytest
import torch
from torch import nn

from tangram.errors import TangramError
from tangram.evaluation.classifiers import linear_accuracy, nearest_neighbor_accuracy
from tangram_studies.metric_learning import baselines
from tangram_studies.metric_learning.networks import ConvNet, metric_layers, spatial_layers, triplet_layers
from tangram_studies.metric_learning.readouts import metric_embedding_accuracy
from tangram_studies.metric_learning.training import embed, fit


def clusters(per_class, seed, classes=3, dimensions=6, noise=0.3):
    generator = torch.Generator().manual_seed(seed)
    centers = 3 * torch.eye(classes, dimensions)
    labels = torch.arange(classes).repeat_interleave(per_class)
    return centers[labels] + noise * torch.randn(len(labels), dimensions, generator=generator), labels


def test_nearest_neighbors_are_those_of_all_distances():
    known, labels = clusters(5, 0, noise=2.0)
    asked, truth = clusters(20, 1, noise=2.0)
    expected = labels[torch.cdist(asked, known).argmin(1)]
    found = nearest_neighbor_accuracy(known, labels, asked, truth)
    assert found == pytest.approx((expected == truth).float().mean().item())
    assert 0.3 < found < 1


def test_a_large_common_mean_changes_no_neighbor():
    known, labels = clusters(5, 0, noise=2.0)
    asked, truth = clusters(20, 1, noise=2.0)
    plain = nearest_neighbor_accuracy(known, labels, asked, truth, 3)
    assert nearest_neighbor_accuracy(known + 1_000, labels, asked + 1_000, truth, 3) == pytest.approx(plain, abs=0.04)


def test_normalized_neighbors_go_by_angle():
    known, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    asked, truth = torch.tensor([[5.0, 4.9], [0.01, 0.02]]), torch.tensor([0, 1])
    assert nearest_neighbor_accuracy(known, labels, asked, truth, normalize=True) == 1
    assert nearest_neighbor_accuracy(known, labels, torch.tensor([[0.0, 0.0]]), truth[:1], normalize=True) in (0, 1)


def test_linear_readout_reads_what_is_linear():
    known, labels = clusters(10, 0)
    asked, truth = clusters(20, 1)
    assert linear_accuracy(known, labels, asked, truth) == 1


@pytest.mark.parametrize(("per_class", "gain"), [(1, -0.15), (10, 0.2)])
def test_a_metric_embedding_finds_the_dimensions_that_matter(per_class, gain):
    """Three dimensions separate the classes; thirty dimensions of larger noise mislead nearest neighbors.

    With one label per class nothing can be learned, but accuracy must not fall to chance, a third.
    """

    def drowned(count, seed):
        signal, labels = clusters(count, seed, dimensions=3, noise=0.4)
        return torch.cat([signal, 2 * torch.randn(len(labels), 30, generator=torch.manual_seed(seed))], 1), labels

    known, labels = drowned(per_class, 1)
    asked, truth = drowned(60, 2)
    unlabeled, _ = drowned(60, 3)
    plain = nearest_neighbor_accuracy(known, labels, asked, truth)
    assert metric_embedding_accuracy(known, labels, asked, truth, unlabeled) > max(plain + gain, 0.34)


def test_one_class_is_refused():
    rows, labels = torch.randn(4, 3), torch.zeros(4, dtype=torch.long)
    with pytest.raises(TangramError, match="one class"):
        metric_embedding_accuracy(rows, labels, rows, labels, rows)


@pytest.mark.parametrize("layers", [triplet_layers, spatial_layers, metric_layers])
@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32)])
def test_networks_take_the_papers_images(layers, channels, side):
    for grid, norm in ((3, False), (0, True)):
        net = ConvNet(channels, layers(2), grid, 7, norm)
        assert embed(net, torch.randn(5, channels, side, side), batch_size=2).shape == (5, 7)
        assert net.filters.shape[:2] == (2, channels)


def test_embedding_is_always_in_evaluation_mode():
    net = ConvNet(1, metric_layers(2), 0, 4, norm=True)
    images = torch.randn(6, 1, 28, 28)
    net.train()
    before = net.features[1].running_mean.clone()
    found = embed(net.pooled, images)  # a bound method has no training mode; its module has
    assert net.training
    assert torch.equal(net.features[1].running_mean, before)
    net.eval()
    with torch.no_grad():
        assert torch.equal(found, net.pooled(images))


def test_fit_visits_every_example_evenly_and_repeats_itself():
    def train(seed):
        torch.manual_seed(0)
        module, seen = nn.Linear(3, 1), []

        def loss(indices, generator):
            seen.append(indices)
            return (module(torch.randn(len(indices), 3, generator=generator)) - 1).square().mean(), {}

        rows = fit(module, loss, steps=6, batch_size=4, learning_rate=1e-2, seed=seed)
        return torch.cat(seen), rows

    indices, rows = train(1)
    assert sorted(indices.tolist()) == list(range(24))
    assert [row["value"] for row in rows] == [row["value"] for row in train(1)[1]]
    assert [row["value"] for row in rows] != [row["value"] for row in train(2)[1]]


def test_modern_losses_prefer_what_belongs_together():
    pytest.importorskip("pytorch_metric_learning")
    together, labels = clusters(4, 0)
    apart = together[torch.randperm(len(together), generator=torch.Generator().manual_seed(1))]
    for loss in (baselines.triplet_margin(), baselines.supervised_contrastive()):
        assert loss(together, labels) < loss(apart, labels)
    assert baselines.nt_xent(together, together + 0.01) < baselines.nt_xent(together, apart)
