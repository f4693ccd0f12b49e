"""Choosing under noise: dueling bandits and online ranking, with the environments that they are played in.

Everything here is batched over independent replications (the first axis of every array), works on NumPy alone, and
knows nothing of language models; `tangram.selection.protocol` says what all policies have in common. `kernels.py` holds
the dueling policies compiled by numba, an optional extra.
"""
