"""A readout that learns a metric from a few labels and many unlabeled examples (arXiv 1611.01449)."""

from __future__ import annotations

import torch

from tangram.evaluation.classifiers import nearest_neighbor_accuracy
from tangram_studies.metric_learning.losses import metric_embedding_loss
from tangram_studies.metric_learning.samplers import LabeledPool
from tangram_studies.metric_learning.training import fit


def metric_embedding_accuracy(
    references: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    truth: torch.Tensor,
    unlabeled: torch.Tensor,
    dimensions: int = 32,
    steps: int = 100,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> float:
    """Return the accuracy of nearest references in a learned linear metric embedding (arXiv 1611.01449).

    The embedding is initialized to the unlabeled examples' principal components, with one scale that makes distances
    about 1. It is trained on labeled pairs and on the entropy of the unlabeled examples. It is not trained if a class
    has only one labeled example, and so no pair: the entropy alone would assign everything to one class.

    Args:
        references: labeled, standardized embeddings, ``(n, d)``.
        labels: labels of the references, ``(n,)``.
        queries: embeddings, ``(m, d)``, none among the references.
        truth: labels of the queries, ``(m,)``.
        unlabeled: embeddings, ``(u, d)``.
        dimensions: size of the embedding; at most the rank of the unlabeled examples.
        steps: optimizer steps.
        learning_rate: peak learning rate.
        seed: seed of all draws.

    Raises:
        TangramError: all labels are of one class.
    """
    pool = LabeledPool(labels)
    decomposition = torch.linalg.svd((unlabeled - unlabeled.mean(0)).float(), full_matrices=False)
    axes = decomposition.Vh[:dimensions]
    projection = torch.nn.Linear(references.shape[1], len(axes), bias=False)
    with torch.no_grad():
        projection.weight.copy_(axes / ((unlabeled - unlabeled.mean(0)) @ axes.T).norm(dim=1).mean())

    def loss(indices: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        anchors = pool.anchors(generator)
        others = projection(unlabeled[indices % len(unlabeled)])
        positives = pool.another(anchors, generator)
        return metric_embedding_loss(
            projection(references[positives]), labels[positives], projection(references[anchors]), others
        ), {}

    if (pool.counts > 1).all():
        fit(projection, loss, steps, 64, learning_rate, seed, weight_decay=0.0)
    with torch.inference_mode():
        embedded, embedded_queries = projection(references), projection(queries)
    return nearest_neighbor_accuracy(embedded, labels, embedded_queries, truth)
