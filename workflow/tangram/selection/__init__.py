"""Choosing among candidates under noise: successive halving, and the interface of other policies.

Policies are batched over independent replications (the first axis of every array) and know nothing of language models;
`protocol.py` says what all of them have in common. Other packages register theirs as `tangram.policies`.
"""
