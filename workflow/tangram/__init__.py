"""Tangram: turn a trained decoder LLM into a faster heterogeneous child (Puzzle, arXiv 2411.19146)."""

__version__ = "0.1.0"
