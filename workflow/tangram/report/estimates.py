"""Measured values with their errors, and the keys of evaluated models."""

from __future__ import annotations

import math
from typing import NamedTuple

CONFIDENCE = 1.96  # standard errors of a two-sided 95 % interval


class Estimate(NamedTuple):
    """A measured value, its standard error (or None), and its number of samples (or None)."""

    value: float
    standard_error: float | None = None
    n: int | None = None

    @property
    def bar(self) -> float:
        """The length of the error bar: the standard error, or 0 if it is missing or not finite."""
        error = self.standard_error
        return error if error is not None and math.isfinite(error) else 0.0

    def times(self, factor: float) -> Estimate:
        """Return this estimate scaled by a factor, for another unit."""
        error = self.standard_error
        return Estimate(self.value * factor, None if error is None else error * abs(factor), self.n)


class Key(NamedTuple):
    """One evaluated model: ``solution`` is the solver's or a rival's; it and ``target`` are empty for the parent."""

    target: str
    solution: str
    model: str


PARENT_KEY = Key("", "", "parent")  # as stock transformers runs it
PACKED_KEY = Key("", "", "packed parent")  # with the kernels that children have


def ratio(numerator: Estimate, denominator: Estimate) -> Estimate:
    """Return the ratio of two independent estimates, with its standard error to first order."""
    value = numerator.value / denominator.value
    errors = (numerator.standard_error, denominator.standard_error)
    if errors[0] is None or errors[1] is None:
        return Estimate(value, None, numerator.n)
    relative = math.hypot(errors[0] / numerator.value, errors[1] / denominator.value)
    return Estimate(value, abs(value) * relative, numerator.n)
