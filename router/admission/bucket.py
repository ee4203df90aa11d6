"""A token bucket. Pure: it is told the time."""

from __future__ import annotations

import math


class TokenBucket:
    """Holds `burst` at most, fills at `rate` per second; starts full.

    What is larger than the whole bucket passes when it is full, and leaves a debt: a limit on rates
    makes large requests rarer, not impossible.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._level = burst
        self._told_at = -math.inf

    def level(self, now: float) -> float:
        """What may be taken at once; negative while there is a debt."""
        if now > self._told_at:
            self._level = min(self.burst, self._level + (now - self._told_at) * self.rate)
            self._told_at = now
        return self._level

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; 0: now."""
        return max(0.0, min(amount, self.burst) - self.level(now)) / self.rate

    def take(self, amount: float, now: float) -> None:
        """Even into debt: ask `wait_s` first. A negative amount gives back."""
        self._level = min(self.burst, self.level(now) - amount)

    def full_in_s(self, now: float) -> float:
        return (self.burst - self.level(now)) / self.rate
