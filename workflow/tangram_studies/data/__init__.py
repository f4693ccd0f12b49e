"""Image data sets of the studies."""
