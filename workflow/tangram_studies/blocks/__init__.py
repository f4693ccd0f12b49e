"""Structured matrices: butterflies, Monarch, fixed random factors."""
