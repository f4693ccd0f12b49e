"""One command per rule. Commands handle config, paths and devices; the rest of the package gets tensors and tables."""
