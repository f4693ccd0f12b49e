"""Blockwise (BLD) and end-to-end (GKD) distillation."""
