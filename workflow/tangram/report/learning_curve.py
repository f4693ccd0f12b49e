"""A power law of a learning curve, and what more tokens would bring.

``KL(t) = a * (t + t0)^-b``, fitted by least squares to log KL. Errors of extrapolation of such fits are the subject of
Hestness et al., "Deep learning scaling is predictable, empirically" (arXiv 1712.00409); the offset ``t0`` is there
because a child starts with trained pieces. A floor (``+ KL_inf``) is left out: within a decade or two of tokens, it
cannot be told from a smaller exponent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POINTS = 5  # the fewest that determine three parameters and a spread
FACTOR = 10  # of the tokens in a forecast
OFFSETS = 2001  # in the grid of t0


@dataclass(frozen=True)
class PowerLaw:
    """A fit of ``log KL = level - exponent * log(1 + t / offset)``; ``a = exp(level) * offset^exponent``.

    Attributes:
        level: log KL at 0 tokens.
        exponent: b; negative if KL rises.
        offset: t0, in tokens.
        tokens: the tokens of the points.
        log_kl: their log KL.
    """

    level: float
    exponent: float
    offset: float
    tokens: np.ndarray
    log_kl: np.ndarray

    @classmethod
    def fit(cls, tokens: Sequence[float], kl: Sequence[float]) -> PowerLaw:
        """Fit points of rising tokens, the first of which may be 0; KL must be positive.

        Raises:
            ValueError: there are fewer points than parameters.
        """
        if len(tokens) < 3:
            raise ValueError(f"{len(tokens)} points do not determine three parameters")
        t, y = np.asarray(tokens, dtype=float), np.log(np.asarray(kl, dtype=float))
        offsets = _offsets(t)
        levels, exponents, rest = _lines(t, y, offsets)
        best = int(np.argmin(rest))
        return cls(float(levels[best]), float(exponents[best]), float(offsets[best]), t, y)

    def at(self, tokens: float | np.ndarray) -> np.ndarray:
        """Return the KL of the fit."""
        return np.exp(self.level - self.exponent * np.log1p(np.asarray(tokens, dtype=float) / self.offset))

    def interval(self, tokens: float, confidence: float = 0.95) -> tuple[float, float]:
        """Return the profile-likelihood interval of the fit's KL at some tokens; infinite without spare points.

        It holds every prediction of a power law whose residual sum of squares is at most ``1 + F / (n - 3)`` times the
        smallest one. For a given offset, the law is a straight line, so this region has a closed form.
        """
        from scipy.stats import f

        spare = len(self.tokens) - 3
        if spare < 1:
            return 0.0, math.inf
        offsets = _offsets(self.tokens)
        levels, exponents, rest = _lines(self.tokens, self.log_kl, offsets)
        limit = rest.min() * (1 + f.ppf(confidence, 1, spare) / spare)
        x = -np.log1p(self.tokens / offsets[:, None])
        at = -np.log1p(tokens / offsets)
        centered = x - x.mean(axis=1, keepdims=True)
        variance = 1 / len(self.tokens) + (at - x.mean(axis=1)) ** 2 / (centered**2).sum(axis=1)
        inside = rest <= limit
        center, half = levels + exponents * at, np.sqrt(variance * np.maximum(limit - rest, 0))
        return float(np.exp((center - half)[inside].min())), float(np.exp((center + half)[inside].max()))


def _offsets(tokens: np.ndarray) -> np.ndarray:
    """Return the grid of t0: from a tenth of the first step's tokens to ten times the last ones."""
    positive = tokens[tokens > 0]
    return np.geomspace(0.1 * positive.min(), 10 * positive.max(), OFFSETS)


def _lines(t: np.ndarray, y: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return level, exponent and residual sum of squares of the least-squares line for every offset."""
    x = -np.log1p(t / offsets[:, None])
    centered = x - x.mean(axis=1, keepdims=True)
    exponents = (centered * (y - y.mean())).sum(axis=1) / (centered**2).sum(axis=1)
    levels = y.mean() - exponents * x.mean(axis=1)
    rest = ((y - levels[:, None] - exponents[:, None] * x) ** 2).sum(axis=1)
    return levels, exponents, rest


@dataclass(frozen=True)
class Forecast:
    """What ``FACTOR`` times the tokens would bring.

    Attributes:
        law: the fit of all points.
        now: the last point's KL.
        then: the fit's KL at ``FACTOR`` times the last point's tokens.
        low, high: its 95 % interval.
        predicts: whether a fit without the last point comes closer to it than the point before.
    """

    law: PowerLaw
    now: float
    then: float
    low: float
    high: float
    predicts: bool


def forecast(tokens: Sequence[float], kl: Sequence[float]) -> Forecast | None:
    """Return the forecast of a learning curve; None for fewer than `POINTS` points, or if a KL is not positive."""
    if len(tokens) < POINTS or min(kl) <= 0:
        return None
    law = PowerLaw.fit(tokens, kl)
    error = abs(float(PowerLaw.fit(tokens[:-1], kl[:-1]).at(tokens[-1])) - kl[-1])
    low, high = law.interval(FACTOR * tokens[-1])
    return Forecast(law, kl[-1], float(law.at(FACTOR * tokens[-1])), low, high, error < abs(kl[-2] - kl[-1]))
