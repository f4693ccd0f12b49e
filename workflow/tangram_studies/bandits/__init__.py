"""Dueling bandits and online ranking, with their environments.

Everything here is batched over independent replications (the first axis of every array), needs only NumPy, and is
independent of language models. `tangram.selection.protocol` defines the interface of policies. `kernels.py` compiles
the dueling policies with numba, an optional extra.
"""
