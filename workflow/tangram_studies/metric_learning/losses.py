"""The losses of three papers on embeddings, each with the paper's distance and normalization.

All three use the plain Euclidean distance of embeddings that are not normalized, at temperature 1; most libraries
normalize by default. Everything is computed in float32. Two embeddings that are equal have distance 0 and gradient 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional


def _check(left: torch.Tensor, right: torch.Tensor, rows: bool = True) -> None:
    if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[1]:
        raise ValueError(f"embeddings must be (n, d) with equal d, not {tuple(left.shape)} and {tuple(right.shape)}")
    if rows and len(left) != len(right):
        raise ValueError(f"embeddings must be paired row by row, not {len(left)} with {len(right)}")
    if len(left) == 0 or len(right) == 0:
        raise ValueError("no embeddings to compare")


def paired_distances(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the Euclidean distance of each row of ``left`` ``(n, d)`` to the same row of ``right``, ``(n,)``."""
    _check(left, right)
    return (left.float() - right.float()).norm(dim=-1)


def pairwise_distances(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return Euclidean distances of each row of ``left`` ``(n, d)`` to each of ``right`` ``(m, d)``: ``(n, m)``.

    Computed from differences: ``|a|² + |b|² - 2ab`` cancels catastrophically where a common mean is large.
    """
    _check(left, right, rows=False)
    return torch.cdist(left.float(), right.float(), compute_mode="donot_use_mm_for_euclid_dist")


def triplet_ratio_loss(
    anchor: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor,
    form: Literal["squared", "log"] = "squared",
) -> torch.Tensor:
    """Return the triplet network's loss on the ratio of two distances (arXiv 1412.6622, section 2), mean over triplets.

    With ``p+ = e^{d+} / (e^{d+} + e^{d-})``, ``squared`` is the paper's ``|(p+, p-) - (0, 1)|² = 2 p+²``, from 0
    (solved) to 2, and 1/2 where both distances are equal; the authors' code computes half of it. ``log`` is
    ``-log p-``, the form of later papers and libraries. The squared form's gradient vanishes for solved and for very
    wrong triplets.

    Args:
        anchor: embeddings, ``(n, d)``.
        positive: embeddings of the anchors' classes, ``(n, d)``.
        negative: embeddings of other classes, ``(n, d)``.
        form: ``squared`` or ``log``.

    Raises:
        ValueError: the shapes differ.
    """
    difference = paired_distances(anchor, positive) - paired_distances(anchor, negative)
    if form == "log":
        return functional.softplus(difference).mean()
    return 2 * torch.sigmoid(difference).square().mean()


def siamese_contrastive_loss(
    left: torch.Tensor, right: torch.Tensor, same: torch.Tensor, margin: float = 1.0
) -> torch.Tensor:
    """Return the contrastive loss of a Siamese network, the triplet paper's baseline, mean over pairs.

    Hadsell, Chopra and LeCun (2006), equation 4: ``d² / 2`` for a pair of one class, ``max(0, margin - d)² / 2`` for
    a pair of two classes, where d is the distance.

    Args:
        left: embeddings, ``(n, d)``.
        right: embeddings, ``(n, d)``.
        same: whether a pair is of one class, bool, ``(n,)``.
        margin: distance beyond which a pair of two classes has no loss.

    Raises:
        ValueError: the shapes differ, or the margin is not positive.
    """
    if margin <= 0:
        raise ValueError(f"the margin must be positive, not {margin}")
    distance = paired_distances(left, right)
    return torch.where(same, distance.square(), functional.relu(margin - distance).square()).mean() / 2


def spatial_contrasting_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the spatial contrasting loss of a batch (arXiv 1610.00243, equation 4), in nats, mean over images.

    Each image's first region must be nearer to that image's second region than to other images' second regions: the
    cross-entropy of a softmax over ``-distance`` to all second regions, in one direction. Chance is ``log n``.

    Args:
        first: embeddings of the images' first regions, ``(n, d)``.
        second: embeddings of the same images' second regions, ``(n, d)``.

    Raises:
        ValueError: the shapes differ, or there is only one image.
    """
    _check(first, second)
    if len(first) < 2:
        raise ValueError("spatial contrasting needs at least two images in a batch")
    return functional.cross_entropy(-pairwise_distances(first, second), torch.arange(len(first), device=first.device))


def metric_log_probabilities(
    embeddings: torch.Tensor, references: torch.Tensor, squared: bool = False, scale: float = 1.0
) -> torch.Tensor:
    """Return the log-probability of every class by distance to one labeled example of each, ``(n, classes)``.

    Metric embedding (arXiv 1611.01449, section 3): a softmax over minus the distance.

    Args:
        embeddings: ``(n, d)``.
        references: one labeled example's embedding per class, in the order of classes, ``(classes, d)``.
        squared: square the distances, as in the paper's text; its authors' code does not.
        scale: factor of the distances; 1 in the paper and in its code.

    Raises:
        ValueError: the shapes differ, or there is only one class.
    """
    distance = pairwise_distances(embeddings, references)
    if len(references) < 2:
        raise ValueError("a metric embedding needs at least two classes")
    return functional.log_softmax(-scale * (distance.square() if squared else distance), dim=-1)


def entropy(log_probabilities: torch.Tensor) -> torch.Tensor:
    """Return the entropy of each row of ``(n, classes)`` in nats, ``(n,)``; probabilities that underflow count as 0."""
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def metric_embedding_loss(
    labeled: torch.Tensor,
    labels: torch.Tensor,
    references: torch.Tensor,
    unlabeled: torch.Tensor | None = None,
    entropy_weight: float = 1.0,
    squared: bool = False,
    scale: float = 1.0,
) -> torch.Tensor:
    """Return the semi-supervised metric embedding loss (arXiv 1611.01449, section 3), in nats.

    The mean negative log-likelihood of the labeled examples plus the mean entropy of the unlabeled ones.

    Args:
        labeled: embeddings, ``(n, d)``, none among the references: an example's distance to itself has no gradient.
        labels: indices into the references, ``(n,)``.
        references: ``(classes, d)``; see `metric_log_probabilities`.
        unlabeled: embeddings, ``(m, d)``; None leaves out the entropy term.
        entropy_weight: weight of the entropy term.
        squared: see `metric_log_probabilities`.
        scale: see `metric_log_probabilities`.

    Raises:
        ValueError: the shapes differ, or there is only one class.
    """
    loss = functional.nll_loss(metric_log_probabilities(labeled, references, squared, scale), labels)
    if unlabeled is None or entropy_weight == 0:
        return loss
    return loss + entropy_weight * entropy(metric_log_probabilities(unlabeled, references, squared, scale)).mean()
