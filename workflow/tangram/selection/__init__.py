"""Best-arm identification among candidates: successive halving, and the interface of other policies.

Policies are batched over independent replications (the first axis of every array) and independent of language models;
`protocol.py` defines their interface. Other packages register policies as `tangram.policies`.
"""
