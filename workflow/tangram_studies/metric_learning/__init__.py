"""Representations learned by comparison: losses, samplers, training and readouts of three papers.

Triplet networks (arXiv 1412.6622), spatial contrasting (arXiv 1610.00243), semi-supervised metric embedding
(arXiv 1611.01449), and two methods for the pipeline: the span-contrastive loss and the metric-embedding readout.
"""
