"""What a representation is worth: how well simple classifiers read classes from it, with few labels or many."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from tangram.errors import TangramError


def draw_per_class(labels: torch.Tensor, per_class: int, seed: int) -> torch.Tensor:
    """Return indices of ``per_class`` examples of every class, drawn by ``seed``, class by class.

    Raises:
        TangramError: a class has fewer.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed % 2**64))  # all that it takes
    parts = []
    for label in labels.unique():
        of_class = order[labels[order] == label]
        if len(of_class) < per_class:
            raise TangramError(f"class {int(label)} has {len(of_class)} examples to label, {per_class} wanted")
        parts.append(of_class[:per_class])
    return torch.cat(parts)


def _centerd(references: torch.Tensor, queries: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return both without the references' mean: distances stay, and no digits are lost to a large common mean."""
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
    """Return the share of queries that the majority of their ``k`` nearest references gets right.

    Args:
        references: labeled embeddings, ``(n, d)``.
        labels: theirs, ``(n,)``.
        queries: ``(m, d)``.
        truth: the queries' labels, ``(m,)``.
        k: neighbors, by Euclidean distance; capped by the number of references.
        normalize: scale every embedding to length 1 first, so that the angle decides.

    Raises:
        ValueError: an embedding is not finite.
    """
    from sklearn.neighbors import KNeighborsClassifier

    if normalize:
        references, queries = (
            torch.nn.functional.normalize(values.float(), dim=-1) for values in (references, queries)
        )
    known, asked = _centerd(references, queries)
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
    """Return the share of queries that a logistic regression on standardized embeddings gets right.

    Args:
        references: labeled embeddings, ``(n, d)``.
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
