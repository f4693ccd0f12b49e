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
    """Return the share of queries whose nearest reference is right in a linear metric embedding (arXiv 1611.01449).

    The embedding begins as the unlabeled examples' principal components, all scaled alike so that distances are about
    1, and learns from labeled pairs and the entropy of the unlabeled. Where a class has one labeled example there is
    no pair, and it stays as it began: the entropy alone would send everything to one class.

    Args:
        references: labeled, standardized embeddings, ``(n, d)``.
        labels: theirs, ``(n,)``.
        queries: ``(m, d)``, not among the others.
        truth: the queries' labels, ``(m,)``.
        unlabeled: ``(u, d)``.
        dimensions: of the embedding; capped by what the unlabeled examples span.
        steps: of training.
        learning_rate: its peak.
        seed: of what is drawn.

    Raises:
        TangramError: the labels are of one class.
    """
    pool = LabeledPool(labels)
    spread = torch.linalg.svd((unlabeled - unlabeled.mean(0)).float(), full_matrices=False)
    axes = spread.Vh[:dimensions]
    projection = torch.nn.Linear(references.shape[1], len(axes), bias=False)
    with torch.no_grad():
        projection.weight.copy_(axes / ((unlabeled - unlabeled.mean(0)) @ axes.T).norm(dim=1).mean())

    def loss(tickets: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        anchors = pool.anchors(generator)
        others = projection(unlabeled[tickets % len(unlabeled)])
        asked = pool.another(anchors, generator)
        return metric_embedding_loss(
            projection(references[asked]), labels[asked], projection(references[anchors]), others
        ), {}

    if (pool.counts > 1).all():
        fit(projection, loss, steps, 64, learning_rate, seed, weight_decay=0.0)
    with torch.inference_mode():
        known, asked = projection(references), projection(queries)
    return nearest_neighbor_accuracy(known, labels, asked, truth)
