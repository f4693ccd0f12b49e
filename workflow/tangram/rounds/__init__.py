"""Iterated compression: a child is compressed a little, finetuned a little, scored again, and so on (Puzzle's authors).

`waypoints` sets the limits of each round, `options` says which pieces a round may choose, `scoring` scores them in the
child of the round before, and `iterate` runs the rounds.
"""
