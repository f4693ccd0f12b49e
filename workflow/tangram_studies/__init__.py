"""Reproductions of papers, and the systems of theirs that the pipeline can use: blocks, policies, a loss, a readout.

One way on `tangram`, which finds these systems by the entry points of this distribution and imports nothing from here.
"""
