"""Reproductions of papers, and their methods that the pipeline can use: blocks, policies, a loss, a readout.

This package imports `tangram`. `tangram` finds the methods through entry points and imports nothing from here.
"""
