"""Accuracy of simple classifiers on a representation, a measure of its quality."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from tangram.errors import TangramError


def draw_per_class(labels: torch.Tensor, per_class: int, seed: int) -> torch.Tensor:
    """Return indices of ``per_class`` random examples of every class, grouped by class.

    Raises:
        TangramError: a class has fewer examples.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed % 2**64))  # manual_seed's range
    parts = []
    for label in labels.unique():
        of_class = order[labels[order] == label]
        if len(of_class) < per_class:
            raise TangramError(
                f"class {int(label)} has {len(of_class)} examples, {per_class} labels are needed; lower their number"
            )
        parts.append(of_class[:per_class])
    return torch.cat(parts)


def _centered(references: torch.Tensor, queries: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return both less the references' mean: distances stay the same, and a large common mean costs no precision."""
    mean = references.float().mean(0)
    return (references.float() - mean).numpy(), (queries.float() - mean).numpy()


def nearest_neighbor_accuracy(
    references: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    truth: torch.Tensor,
    k: int = 1,
    normalize: bool = False,
) -> float:
    """Return the accuracy of a k-nearest-neighbor classifier.

    Args:
        references: labeled embeddings, ``(n, d)``.
        labels: labels of the references, ``(n,)``.
        queries: embeddings to classify, ``(m, d)``.
        truth: labels of the queries, ``(m,)``.
        k: number of neighbors, by Euclidean distance; at most the number of references.
        normalize: scale every embedding to length 1 first, so that distances follow the angle.

    Raises:
        ValueError: an embedding is not finite.
    """
    from sklearn.neighbors import KNeighborsClassifier

    if normalize:
        references, queries = (
            torch.nn.functional.normalize(values.float(), dim=-1) for values in (references, queries)
        )
    train, test = _centered(references, queries)
    classifier = KNeighborsClassifier(n_neighbors=min(k, len(train)), algorithm="brute").fit(train, labels.numpy())
    return float((classifier.predict(test) == truth.numpy()).mean())


def linear_accuracy(
    references: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    truth: torch.Tensor,
    strength: float = 1.0,
    iterations: int = 200,
) -> float:
    """Return the accuracy of a logistic regression on standardized embeddings.

    Args:
        references: labeled embeddings, ``(n, d)``.
        labels: labels of the references, ``(n,)``.
        queries: embeddings to classify, ``(m, d)``.
        truth: labels of the queries, ``(m,)``.
        strength: inverse regularization strength (scikit-learn's ``C``).
        iterations: maximum number of L-BFGS iterations; an unconverged result counts.

    Raises:
        ValueError: an embedding is not finite, or all labels are equal.
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
