"""What a representation is worth: how well simple classifiers read classes from it, with few labels or many."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from tangram.metric_learning.losses import metric_embedding_loss
from tangram.metric_learning.samplers import LabelledPool
from tangram.metric_learning.training import fit


def _centred(references: torch.Tensor, queries: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return both without the references' mean: distances stay, and no digits are lost to a large common mean."""
    mean = references.float().mean(0)
    return (references.float() - mean).numpy(), (queries.float() - mean).numpy()


def nearest_neighbour_accuracy(
    references: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    truth: torch.Tensor,
    k: int = 1,
    normalise: bool = False,
) -> float:
    """Return the share of queries that the majority of their ``k`` nearest references gets right.

    Args:
        references: labelled embeddings, ``(n, d)``.
        labels: theirs, ``(n,)``.
        queries: ``(m, d)``.
        truth: the queries' labels, ``(m,)``.
        k: neighbours, by Euclidean distance; capped by the number of references.
        normalise: scale every embedding to length 1 first, so that the angle decides.

    Raises:
        ValueError: an embedding is not finite.
    """
    from sklearn.neighbors import KNeighborsClassifier

    if normalise:
        references, queries = (
            torch.nn.functional.normalize(values.float(), dim=-1) for values in (references, queries)
        )
    known, asked = _centred(references, queries)
    classifier = KNeighborsClassifier(n_neighbors=min(k, len(known)), algorithm="brute").fit(known, labels.numpy())
    return float((classifier.predict(asked) == truth.numpy()).mean())


def linear_accuracy(
    references: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    truth: torch.Tensor,
    strength: float = 1.0,
    iterations: int = 200,
) -> float:
    """Return the share of queries that a logistic regression on standardised embeddings gets right.

    Args:
        references: labelled embeddings, ``(n, d)``.
        labels: theirs, ``(n,)``.
        queries: ``(m, d)``.
        truth: the queries' labels, ``(m,)``.
        strength: inverse of the ridge's strength (scikit-learn's ``C``).
        iterations: of L-BFGS, at most; what it has reached then counts.

    Raises:
        ValueError: an embedding is not finite, or there is one class only.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(references.float().numpy(), labels.numpy())
    return float((classifier.predict(queries.float().numpy()) == truth.numpy()).mean())


def metric_embedding_accuracy(
    references: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    truth: torch.Tensor,
    unlabelled: torch.Tensor,
    dimensions: int = 32,
    steps: int = 100,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> float:
    """Return the share of queries whose nearest reference is right in a linear metric embedding (arXiv 1611.01449).

    The embedding begins as the unlabelled examples' principal components, all scaled alike so that distances are about
    1, and learns from labelled pairs and the entropy of the unlabelled. Where a class has one labelled example there is
    no pair, and it stays as it began: the entropy alone would send everything to one class.

    Args:
        references: labelled, standardised embeddings, ``(n, d)``.
        labels: theirs, ``(n,)``.
        queries: ``(m, d)``, not among the others.
        truth: the queries' labels, ``(m,)``.
        unlabelled: ``(u, d)``.
        dimensions: of the embedding; capped by what the unlabelled examples span.
        steps: of training.
        learning_rate: its peak.
        seed: of what is drawn.

    Raises:
        TangramError: the labels are of one class.
    """
    pool = LabelledPool(labels)
    spread = torch.linalg.svd((unlabelled - unlabelled.mean(0)).float(), full_matrices=False)
    axes = spread.Vh[:dimensions]
    projection = torch.nn.Linear(references.shape[1], len(axes), bias=False)
    with torch.no_grad():
        projection.weight.copy_(axes / ((unlabelled - unlabelled.mean(0)) @ axes.T).norm(dim=1).mean())

    def loss(tickets: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        anchors = pool.anchors(generator)
        others = projection(unlabelled[tickets % len(unlabelled)])
        asked = pool.another(anchors, generator)
        return metric_embedding_loss(
            projection(references[asked]), labels[asked], projection(references[anchors]), others
        ), {}

    if (pool.counts > 1).all():
        fit(projection, loss, steps, 64, learning_rate, seed, weight_decay=0.0)
    with torch.inference_mode():
        known, asked = projection(references), projection(queries)
    return nearest_neighbour_accuracy(known, labels, asked, truth)
