"""How long an answer may take before somebody else is asked."""

from __future__ import annotations

_FACTOR = 8.0  # of what is usual
_RECENT = 0.05  # weight of a step in what is usual


class Patience:
    """Learns what a round trip usually takes. One thread.

    A deadline only moves work: whether a worker is dead, its connection tells. So it is generous: a
    hiccup of the machine is cheaper to wait for than to compute twice.
    """

    def __init__(self, least_us: float) -> None:
        self._least_us = least_us
        self._usual: dict[int, float] = {}  # µs, by the power of two of the rows

    def deadline_us(self, rows: int) -> int:
        return int(max(self._least_us, _FACTOR * self._usual.get(rows.bit_length(), 0.0)))

    def learn(self, rows: int, round_trip_us: float) -> None:
        """What messages of a lane of so many rows took on average."""
        size = rows.bit_length()
        known = self._usual.get(size, round_trip_us)
        self._usual[size] = known + _RECENT * (round_trip_us - known)
