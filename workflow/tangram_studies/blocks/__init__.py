"""Structured matrices that the studies measure."""
