"""Interpolation between measured models, and their difference from another model at its speed or at its loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tangram.report.estimates import Estimate
from tangram.report.samples import propagate


class Point(NamedTuple):
    """A measured model: its speed, its loss, and its loss on every held-out sequence if the run stores it."""

    speed: Estimate
    loss: Estimate
    sequences: np.ndarray | None = None


class Beside(NamedTuple):
    """The loss at another model's speed, or the speed at its loss, and the difference from that model's.

    The difference of two positive losses is the logarithm of their ratio where losses are interpolated on a logarithmic
    scale, because only there it is about linear in the speeds, whose errors count.
    """

    value: Estimate
    difference: Estimate


def loss_at(points: Sequence[Point], other: Point, logarithmic: bool) -> Beside | None:
    """Interpolate the loss at another model's speed; None outside the range of ``points``.

    Errors propagate to first order: speeds are independent, losses are paired by sequence where sequences are given.

    Args:
        points: the models to interpolate between, in any order.
        other: the other model.
        logarithmic: interpolate the logarithm of the loss, between neighbors that both have a loss above 0.
    """
    neighbors = _neighbors(points, other.speed.value, at_loss=False)
    if neighbors is None:
        return None
    left, right = neighbors
    log = logarithmic and left.loss.value > 0 and right.loss.value > 0

    def value(values: np.ndarray) -> float:
        share = (values[4] - values[0]) / (values[2] - values[0])
        low, high = (math.log(values[1]), math.log(values[3])) if log else (values[1], values[3])
        mixed = (1 - share) * low + share * high
        return math.exp(mixed) if log else float(mixed)

    ratio = log and other.loss.value > 0

    def difference(values: np.ndarray) -> float:
        return math.log(value(values) / values[5]) if ratio else value(values) - values[5]

    terms = [left.speed, left.loss, right.speed, right.loss, other.speed, other.loss]
    samples = [None, left.sequences, None, right.sequences, None, other.sequences]
    return Beside(propagate(value, terms[:5], samples[:5]), propagate(difference, terms, samples))


def speed_at(points: Sequence[Point], other: Point, logarithmic: bool) -> Beside | None:
    """Interpolate the speed at another model's loss, as `loss_at` does the loss at its speed."""
    neighbors = _neighbors(points, other.loss.value, at_loss=True)
    if neighbors is None:
        return None
    left, right = neighbors
    log = logarithmic and left.loss.value > 0

    def value(values: np.ndarray) -> float:
        low, high, place = (math.log(v) if log else v for v in (values[1], values[3], values[4]))
        share = (place - low) / (high - low)
        return float((1 - share) * values[0] + share * values[2])

    terms = [left.speed, left.loss, right.speed, right.loss, other.loss, other.speed]
    samples = [None, left.sequences, None, right.sequences, other.sequences, None]
    difference = propagate(lambda values: value(values) - values[5], terms, samples)
    return Beside(propagate(value, terms[:5], samples[:5]), difference)


def loss_difference(one: Point, other: Point) -> Estimate:
    """Return the loss of one model less that of another, paired by sequence where both have sequences."""
    samples = [one.sequences, other.sequences]
    return propagate(lambda values: float(values[0] - values[1]), [one.loss, other.loss], samples)


def speed_difference(one: Point, other: Point) -> Estimate:
    """Return the speed of one model less that of another, whose errors are independent."""
    return propagate(lambda values: float(values[0] - values[1]), [one.speed, other.speed])


def _neighbors(points: Sequence[Point], place: float, at_loss: bool) -> tuple[Point, Point] | None:
    """Return the points on both sides of a speed, or of a loss."""

    def where(point: Point) -> float:
        return (point.loss if at_loss else point.speed).value

    for left, right in itertools.pairwise(sorted(points, key=where)):
        if where(left) <= place <= where(right) and where(left) < where(right):
            return left, right
    return None
