"""How long until a request's first token? Measured from requests that had theirs."""

from __future__ import annotations

import math
from typing import Protocol

_MEMORY_S = 10.0  # of backlogged time
_MEMORY_REQUESTS = 64
_ENOUGH_S = 0.5  # of backlogged time, for a rate worth having
_ENOUGH_REQUESTS = 4


class TtftPredictor(Protocol):
    """`queued`: cost of what waits at the router before the request, in tokens as the fair queue
    counts them. `prefill`: prompt tokens to compute until its first token, its own and those that
    workers have before it.
    """

    def seconds(self, queued: float, prefill: float) -> float | None:
        """From now to the first token; None: nothing is known yet."""

    def drained(self, cost: float, seconds: float) -> None:
        """So much went to the workers in so many seconds in which others had to wait."""

    def answered(self, prefill: float, seconds: float) -> None:
        """A request had its first token so long after it went to a worker."""


class MeasuredTtft:
    """Waiting time from the rate at which the queue drains, the rest from a line through what
    finished requests took: `fixed + per_token * prefill`, plus its mean error, so that a request
    that is let in at the limit usually keeps it.

    Both forget: load and lengths change.
    """

    def __init__(self) -> None:
        self._cost = self._seconds = 0.0  # of backlogged time
        self._n = self._x = self._y = self._xx = self._xy = 0.0  # decayed sums over requests
        self._error = 0.0
        self._fixed = self._per_token = 0.0

    def seconds(self, queued: float, prefill: float) -> float | None:
        if self._n < _ENOUGH_REQUESTS:
            return None
        own = self._fixed + self._per_token * prefill + self._error
        if not queued or self._seconds < _ENOUGH_S:
            return own
        return own + (queued * self._seconds / self._cost if self._cost else 0.0)

    def drained(self, cost: float, seconds: float) -> None:
        keep = math.exp(-seconds / _MEMORY_S)
        self._cost = self._cost * keep + cost
        self._seconds = self._seconds * keep + seconds

    def answered(self, prefill: float, seconds: float) -> None:
        if self._n >= _ENOUGH_REQUESTS:
            missed = abs(seconds - self._fixed - self._per_token * prefill)
            self._error += (missed - self._error) * 2 / _MEMORY_REQUESTS
        keep = 1 - 1 / _MEMORY_REQUESTS
        self._n = self._n * keep + 1
        self._x = self._x * keep + prefill
        self._y = self._y * keep + seconds
        self._xx = self._xx * keep + prefill * prefill
        self._xy = self._xy * keep + prefill * seconds
        self._fixed, self._per_token = self._line()

    def _line(self) -> tuple[float, float]:
        """Least squares, with neither a negative time for nothing nor one for a token."""
        mean_x, mean_y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - mean_x * mean_x
        if mean_x <= 0:
            return mean_y, 0.0
        steepest = mean_y / mean_x  # through the origin
        if spread < 0.01 * mean_x * mean_x:  # all alike: no slope can be told
            return 0.0, steepest
        slope = (self._xy / self._n - mean_x * mean_y) / spread
        slope = min(max(slope, 0.0), steepest)
        return mean_y - slope * mean_x, slope
