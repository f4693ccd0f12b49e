"""The losses of three papers on embeddings, each with the paper's own distance and normalization.

All three use the plain Euclidean distance of embeddings that are not normalized, at temperature 1; most libraries
normalize by default. Everything is computed in float32. Two embeddings that are equal have distance 0 and gradient 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional


def _check(one: torch.Tensor, other: torch.Tensor, rows: bool = True) -> None:
    if one.dim() != 2 or other.dim() != 2 or one.shape[1] != other.shape[1]:
        raise ValueError(f"embeddings must be (n, d) alike in d, not {tuple(one.shape)} and {tuple(other.shape)}")
    if rows and len(one) != len(other):
        raise ValueError(f"embeddings must be paired row by row, not {len(one)} with {len(other)}")
    if len(one) == 0 or len(other) == 0:
        raise ValueError("there are no embeddings to compare")


def paired_distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the Euclidean distance of each row of ``one`` ``(n, d)`` to the same row of ``other``, ``(n,)``."""
    _check(one, other)
    return (one.float() - other.float()).norm(dim=-1)


def pairwise_distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return Euclidean distances of each row of ``one`` ``(n, d)`` to each of ``other`` ``(m, d)``: ``(n, m)``.

    By differences: the matrix product ``|a|² + |b|² - 2ab`` loses every digit where a common mean is large.
    """
    _check(one, other, rows=False)
    return torch.cdist(one.float(), other.float(), compute_mode="donot_use_mm_for_euclid_dist")


def triplet_ratio_loss(
    anchor: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor,
    form: Literal["squared", "log"] = "squared",
) -> torch.Tensor:
    """Return the triplet network's loss on the ratio of two distances (arXiv 1412.6622, section 2), mean over triplets.

    With ``p+ = e^{d+} / (e^{d+} + e^{d-})``, ``squared`` is the paper's ``|(p+, p-) - (0, 1)|² = 2 p+²``, from 0
    (solved) to 2, and 1/2 where both distances are equal; the authors' code has half of it. ``log`` is ``-log p-``, as
    later papers and libraries have it. The squared form's gradient vanishes for solved and for very wrong triplets.

    Args:
        anchor: ``(n, d)``.
        positive: of the anchor's class, ``(n, d)``.
        negative: of another class, ``(n, d)``.
        form: see above.

    Raises:
        ValueError: the shapes differ.
    """
    difference = paired_distances(anchor, positive) - paired_distances(anchor, negative)
    if form == "log":
        return functional.softplus(difference).mean()
    return 2 * torch.sigmoid(difference).square().mean()


def siamese_contrastive_loss(
    one: torch.Tensor, other: torch.Tensor, same: torch.Tensor, margin: float = 1.0
) -> torch.Tensor:
    """Return the contrastive loss of a Siamese network, the triplet paper's baseline, mean over pairs.

    Hadsell, Chopra and LeCun (2006), equation 4: half the squared distance of a pair of one class, and half the
    squared rest to the margin of a pair of two.

    Args:
        one: ``(n, d)``.
        other: ``(n, d)``.
        same: bool, ``(n,)``.
        margin: distance beyond which a pair of two classes costs nothing.

    Raises:
        ValueError: the shapes differ, or the margin is not positive.
    """
    if margin <= 0:
        raise ValueError(f"the margin must be positive, not {margin}")
    distance = paired_distances(one, other)
    return torch.where(same, distance.square(), functional.relu(margin - distance).square()).mean() / 2


def spatial_contrasting_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the spatial contrasting loss of a batch (arXiv 1610.00243, equation 4), in nats, mean over images.

    Each image's first region must be nearer its own second region than other images' second regions: the cross-entropy
    of a softmax over ``-distance``, one-directional, the right one among the alternatives. Chance is ``log n``.

    Args:
        first: embeddings of the images' first regions, ``(n, d)``.
        second: of their second regions, ``(n, d)``.

    Raises:
        ValueError: the shapes differ, or there is one image only: nothing to tell it from.
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
        references: one labeled example's embedding per class, in the classes' order, ``(classes, d)``.
        squared: square the distances, as the paper writes them; its authors' code does not.
        scale: multiplies them; 1 in paper and code.

    Raises:
        ValueError: the shapes differ, or there is one class only.
    """
    distance = pairwise_distances(embeddings, references)
    if len(references) < 2:
        raise ValueError("a metric embedding needs at least two classes")
    return functional.log_softmax(-scale * (distance.square() if squared else distance), dim=-1)


def entropy(log_probabilities: torch.Tensor) -> torch.Tensor:
    """Return the entropy of each row of ``(n, classes)`` in nats, ``(n,)``; what underflows adds nothing."""
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

    The labeled examples' negative log-likelihood plus the entropy of the unlabeled ones, each a mean over its own.

    Args:
        labeled: ``(n, d)``, none of them among the references: an example's distance to itself teaches nothing.
        labels: ``(n,)``, indices into the references.
        references: ``(classes, d)``; see `metric_log_probabilities`.
        unlabeled: ``(m, d)``; left out, only the first term is there.
        entropy_weight: of the second term.
        squared: see `metric_log_probabilities`.
        scale: see `metric_log_probabilities`.

    Raises:
        ValueError: the shapes differ, or there is one class only.
    """
    loss = functional.nll_loss(metric_log_probabilities(labeled, references, squared, scale), labels)
    if unlabeled is None or entropy_weight == 0:
        return loss
    return loss + entropy_weight * entropy(metric_log_probabilities(unlabeled, references, squared, scale)).mean()
