"""Choosing among candidates under noise: duelling bandits, best-arm identification and online ranking.

Everything here is batched over independent replications (the first axis of every array), works on NumPy alone, and
knows nothing of language models; `protocol.py` says what all policies have in common. `kernels.py` holds the same
duelling policies compiled by numba, an optional extra.
"""
