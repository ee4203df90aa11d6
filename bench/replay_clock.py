"""Virtual time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Clock:
    """Calls things when their time has come; what is due at once, in the order of asking."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[float], None]]] = []

    def at(self, time: float, call: Callable[[float], None]) -> None:
        assert time >= self.now, "nobody can be called in the past"
        heapq.heappush(self._due, (time, next(self._order), call))

    def run(self) -> None:
        while self._due:
            self.now, _, call = heapq.heappop(self._due)
            call(self.now)
