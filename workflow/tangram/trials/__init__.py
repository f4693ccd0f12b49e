"""Trials of text: which source of text a child learns most from, before a run distils on it."""
