"""How long until a request's first token? Measured from requests that had theirs, and from what the
workers say of themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

_MEMORY_REQUESTS = 64
_MEMORY_S = 10.0  # of backlogged time
_ENOUGH_S = 0.5  # of it, for a rate worth having
_FAITH_S = 3.0  # in what requests took; after 10, storms were remembered for a minute
_ENOUGH_REQUESTS = 4
# Mean errors between what is expected and what is promised: as many as TCP's timeout has over the
# round trip that it expects (Jacobson, SIGCOMM 1988). With one, a quarter of what was let in at the
# limit came too late (bench.admission), and was computed for nothing.
_CAUTION = 4.0


@dataclass(frozen=True, slots=True)
class Line:
    """`fixed_s + per_token_s * prefill`."""

    fixed_s: float
    per_token_s: float

    def seconds(self, prefill: float) -> float:
        return self.fixed_s + self.per_token_s * prefill

    def prefill_within(self, seconds: float) -> float:
        return max(0.0, seconds - self.fixed_s) / max(self.per_token_s, 1e-9)


class TtftPredictor(Protocol):
    """`queued`: cost of what waits at the router before the request, in tokens as the fair queue
    counts them. `prefill`: prompt tokens to compute until its first token, its own and those that
    workers have before it. Times are seconds; `now` of one clock.
    """

    def seconds(self, queued: float, prefill: float, now: float) -> float | None:
        """From now to the first token; None: nothing is known yet."""

    def prefill_within(self, seconds: float, now: float) -> float | None:
        """The largest `prefill` with a first token in so many seconds; None: nobody knows."""

    def drained(self, cost: float, seconds: float) -> None:
        """So much went to the workers in so many seconds in which others had to wait."""

    def answered(self, prefill: float, seconds: float, now: float) -> None:
        """A request had its first token so long after it went to a worker."""

    def paced(self, line: Line | None) -> None:
        """What prompts take by the workers' own measure; None: they have none yet."""


class MeasuredTtft:
    """Waiting time from the rate at which the queue drains, the rest from a line through what
    finished requests took, plus some of its mean errors, so that a request that is let in at the
    limit usually keeps it.

    Both forget: load and lengths change. What was measured on requests also fades while none is
    answered, towards what the workers measure of their steps: who is turned away teaches nothing,
    so a storm that was believed in for ever would turn everybody away when it is long over.
    """

    def __init__(self) -> None:
        self._cost = self._seconds = 0.0  # of backlogged time
        self._n = self._x = self._y = self._xx = self._xy = 0.0  # decayed sums over requests
        self._error = 0.0  # mean of absolute errors
        self._answered_at = -math.inf
        self._measured = Line(0.0, 0.0)
        self._pace: Line | None = None

    def seconds(self, queued: float, prefill: float, now: float) -> float | None:
        own = self._at_workers(prefill, now)
        if own is None or not queued or self._seconds < _ENOUGH_S:
            return own
        return own + (queued * self._seconds / self._cost if self._cost else 0.0)

    def prefill_within(self, seconds: float, now: float) -> float | None:
        fixed, one = self._at_workers(0.0, now), self._at_workers(1.0, now)
        if fixed is None or one is None:
            return None
        return Line(fixed, one - fixed).prefill_within(seconds)  # a sum of lines

    def drained(self, cost: float, seconds: float) -> None:
        keep = math.exp(-seconds / _MEMORY_S)
        self._cost = self._cost * keep + cost
        self._seconds = self._seconds * keep + seconds

    def paced(self, line: Line | None) -> None:
        self._pace = line

    def answered(self, prefill: float, seconds: float, now: float) -> None:
        believed = self._believed(prefill, now)
        if believed is not None:
            self._error = self._faded_error(now)
            self._error += (abs(seconds - believed) - self._error) * 2 / _MEMORY_REQUESTS
        keep = (1 - 1 / _MEMORY_REQUESTS) * self._faith(now)
        self._n = self._n * keep + 1
        self._x = self._x * keep + prefill
        self._y = self._y * keep + seconds
        self._xx = self._xx * keep + prefill * prefill
        self._xy = self._xy * keep + prefill * seconds
        self._answered_at = now
        self._measured = self._line()

    def _at_workers(self, prefill: float, now: float) -> float | None:
        believed = self._believed(prefill, now)
        return None if believed is None else believed + _CAUTION * self._faded_error(now)

    def _believed(self, prefill: float, now: float) -> float | None:
        """Workers' own measure counts as much as some requests; without it, those must suffice."""
        if self._pace is None:
            return self._measured.seconds(prefill) if self._n >= _ENOUGH_REQUESTS else None
        number = self._n * self._faith(now)
        told = number * self._measured.seconds(prefill)
        return (told + _ENOUGH_REQUESTS * self._pace.seconds(prefill)) / (number + _ENOUGH_REQUESTS)

    def _faded_error(self, now: float) -> float:
        return self._error * self._faith(now)

    def _faith(self, now: float) -> float:
        """In what was measured on requests, 0-1: full where there is nothing else to believe in."""
        if self._pace is None:
            return 1.0
        return math.exp(min(0.0, self._answered_at - now) / _FAITH_S)

    def _line(self) -> Line:
        """Least squares, with neither a negative time for nothing nor one for a token."""
        mean_x, mean_y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - mean_x * mean_x
        if mean_x <= 0:
            return Line(mean_y, 0.0)
        steepest = mean_y / mean_x  # through the origin
        if spread < 0.01 * mean_x * mean_x:  # all alike: no slope can be told
            return Line(0.0, steepest)
        slope = (self._xy / self._n - mean_x * mean_y) / spread
        slope = min(max(slope, 0.0), steepest)
        return Line(mean_y - slope * mean_x, slope)
