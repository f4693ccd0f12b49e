"""The losses against hand-made values, other libraries' objects, numerical gradients and extreme inputs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangram_studies.metric_learning import baselines, losses


def embeddings(count, seed, dimensions=5):
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


LOSSES = {
    "triplet": lambda a, b, c: losses.triplet_ratio_loss(a, b, c),
    "triplet log": lambda a, b, c: losses.triplet_ratio_loss(a, b, c, "log"),
    "siamese": lambda a, b, c: losses.siamese_contrastive_loss(a, b, torch.arange(len(a)) % 2 == 0, 2.0),
    "spatial": lambda a, b, c: losses.spatial_contrasting_loss(a, b),
    "metric": lambda a, b, c: losses.metric_embedding_loss(a, torch.arange(len(a)) % len(b), b, c),
    "metric squared": lambda a, b, c: losses.metric_embedding_loss(
        a, torch.arange(len(a)) % len(b), b, c, squared=True
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # gradcheck needs float64 throughout
    parts = [embeddings(4, seed).double().requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(LOSSES[name], parts)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e4])
@pytest.mark.parametrize("equal", [True, False])
def test_extreme_embeddings_give_finite_losses_and_gradients(name, scale, equal):
    parts = [(scale * embeddings(4, 0 if equal else seed)).requires_grad_() for seed in range(3)]
    loss = LOSSES[name](*parts)
    loss.backward()
    assert loss.isfinite()
    assert all(part.grad is None or part.grad.isfinite().all() for part in parts)


def test_triplet_ratio_of_distances_known_by_hand():
    anchor = torch.zeros(1, 2)
    positive, negative = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 6.0]])  # distances 5 and 6
    share = math.exp(5) / (math.exp(5) + math.exp(6))
    assert losses.triplet_ratio_loss(anchor, positive, negative).item() == pytest.approx(2 * share**2, rel=1e-5)
    log = losses.triplet_ratio_loss(anchor, positive, negative, "log")
    assert log.item() == pytest.approx(-math.log(1 - share), rel=1e-5)


def test_triplet_loss_where_nothing_is_learned():
    same = embeddings(3, 0)
    assert losses.triplet_ratio_loss(same, same, same).item() == pytest.approx(0.5)
    assert losses.triplet_ratio_loss(same, same, same, "log").item() == pytest.approx(math.log(2))


@given(st.floats(-20, 20), st.floats(0, 20))
@settings(max_examples=30, deadline=None)
def test_triplet_loss_depends_on_distance_differences_alone(difference, nearest):
    first, second = max(0.0, difference) + nearest, max(0.0, -difference) + nearest
    anchor = torch.zeros(1, 1)
    found = losses.triplet_ratio_loss(anchor, torch.tensor([[first]]), torch.tensor([[-second]])).item()
    assert found == pytest.approx(2 / (1 + math.exp(-difference)) ** 2, rel=1e-4, abs=1e-12)
    assert 0 <= found <= 2


def test_siamese_pairs_known_by_hand():
    one, other = torch.zeros(2, 1), torch.tensor([[0.5], [0.5]])
    found = losses.siamese_contrastive_loss(one, other, torch.tensor([True, False]), margin=2.0)
    assert found.item() == pytest.approx((0.5**2 / 2 + 1.5**2 / 2) / 2)


def test_spatial_contrasting_at_chance_and_solved():
    same = embeddings(1, 0).expand(7, 5)
    assert losses.spatial_contrasting_loss(same, same).item() == pytest.approx(math.log(7))
    apart = 100 * torch.eye(5)
    assert losses.spatial_contrasting_loss(apart, apart).item() == pytest.approx(0, abs=1e-6)


def test_the_right_region_is_among_the_alternatives():
    first, second = embeddings(3, 0), embeddings(3, 1)
    expected = 0.0
    for i in range(3):
        weights = [math.exp(-float((first[i] - second[j]).norm())) for j in range(3)]
        expected -= math.log(weights[i] / sum(weights)) / 3
    assert losses.spatial_contrasting_loss(first, second).item() == pytest.approx(expected, rel=1e-5)


def test_metric_embedding_known_by_hand():
    references = torch.tensor([[0.0], [1.0]])
    found = losses.metric_embedding_loss(torch.tensor([[0.25]]), torch.tensor([0]), references)
    assert found.item() == pytest.approx(-math.log(math.exp(-0.25) / (math.exp(-0.25) + math.exp(-0.75))))
    squared = losses.metric_embedding_loss(torch.tensor([[0.25]]), torch.tensor([0]), references, squared=True)
    assert squared.item() == pytest.approx(-math.log(1 / (1 + math.exp(0.0625 - 0.5625))))


def test_an_unlabeled_example_is_drawn_to_the_nearest_reference():
    """With a sign error (a softmax over plus the distance) it would be drawn to the farthest one."""
    references = torch.tensor([[0.0], [10.0]])
    probabilities = losses.metric_log_probabilities(torch.tensor([[1.0]]), references).exp()
    assert probabilities[0, 0] > 0.99
    # A linear embedding of places 1 and 9 between the references 0 and 10: entropy falls as the scale grows.
    scale = torch.tensor(0.1, requires_grad=True)
    places = scale * torch.tensor([[1.0], [9.0]])
    losses.entropy(losses.metric_log_probabilities(places, scale * references)).mean().backward()
    assert scale.grad < 0


def test_entropy_term_is_the_weighted_mean_over_the_unlabeled():
    labeled, references, unlabeled = embeddings(4, 0), embeddings(3, 1), embeddings(6, 2)
    labels = torch.tensor([0, 1, 2, 0])
    alone = losses.metric_embedding_loss(labeled, labels, references)
    together = losses.metric_embedding_loss(labeled, labels, references, unlabeled, entropy_weight=0.5)
    log = (-torch.cdist(unlabeled, references)).log_softmax(-1)
    expected = torch.distributions.Categorical(logits=log).entropy().mean()
    assert (together - alone).item() == pytest.approx(0.5 * expected.item(), rel=1e-4)


def test_distances_survive_a_large_common_mean():
    rows = embeddings(40, 0, 64) + 1_000
    assert losses.pairwise_distances(rows, rows).diagonal().abs().max() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.spatial_contrasting_loss(embeddings(1, 0), embeddings(1, 1)), "at least two images"),
        (lambda: losses.metric_log_probabilities(embeddings(3, 0), embeddings(1, 1)), "at least two classes"),
        (lambda: losses.triplet_ratio_loss(embeddings(3, 0), embeddings(3, 1), embeddings(2, 2)), "row by row"),
        (lambda: losses.paired_distances(embeddings(3, 0, 4), embeddings(3, 1, 5)), "with equal d"),
        (lambda: losses.paired_distances(embeddings(0, 0), embeddings(0, 1)), "no embeddings"),
        (lambda: losses.siamese_contrastive_loss(embeddings(2, 0), embeddings(2, 1), torch.ones(2), 0), "margin"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class TestAgainstPytorchMetricLearning:
    """The library's losses give the same numbers without its default normalization and symmetry."""

    pytest.importorskip("pytorch_metric_learning")

    def test_spatial_contrasting(self):
        from pytorch_metric_learning.distances import LpDistance
        from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

        first, second = embeddings(6, 0), embeddings(6, 1)
        plain = NTXentLoss(temperature=1, distance=LpDistance(normalize_embeddings=False))
        theirs = SelfSupervisedLoss(plain, symmetric=False)(first, second)
        assert losses.spatial_contrasting_loss(first, second).item() == pytest.approx(theirs.item(), rel=1e-5)

    def test_nt_xent_is_the_librarys_own(self):
        from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

        first, second = embeddings(6, 0), embeddings(6, 1)
        theirs = SelfSupervisedLoss(NTXentLoss(temperature=0.5))(first, second)
        assert baselines.nt_xent(first, second, 0.5).item() == pytest.approx(theirs.item(), rel=1e-5)

    def test_triplet_log_form(self):
        from pytorch_metric_learning.distances import LpDistance
        from pytorch_metric_learning.losses import TripletMarginLoss
        from pytorch_metric_learning.reducers import MeanReducer

        parts = [embeddings(4, seed) for seed in range(3)]
        theirs = TripletMarginLoss(
            margin=0, smooth_loss=True, distance=LpDistance(normalize_embeddings=False), reducer=MeanReducer()
        )
        rows = torch.arange(4)
        found = theirs(torch.cat(parts), indices_tuple=(rows, rows + 4, rows + 8))
        assert losses.triplet_ratio_loss(*parts, "log").item() == pytest.approx(found.item(), rel=1e-5)

    def test_metric_embedding(self):
        from pytorch_metric_learning.distances import LpDistance
        from pytorch_metric_learning.losses import NCALoss

        queries, references, labels = embeddings(6, 0), embeddings(3, 1), torch.arange(6) % 3
        theirs = NCALoss(distance=LpDistance(power=2, normalize_embeddings=False))
        found = theirs(queries, labels, ref_emb=references, ref_labels=torch.arange(3))
        ours = losses.metric_embedding_loss(queries, labels, references, squared=True)
        assert ours.item() == pytest.approx(found.item(), rel=1e-4)
