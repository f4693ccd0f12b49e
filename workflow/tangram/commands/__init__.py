"""One command per rule: config, paths and devices end here; the rest of the package sees tensors and tables."""
