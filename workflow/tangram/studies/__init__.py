"""Reproductions of papers: one module per study, with nothing but what its tables and figures need."""
