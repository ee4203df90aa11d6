"""Blocks that workers do not have yet, but will have when what was placed on them is computed.

Without these, a burst of prompts with one beginning would find nobody who holds it, and be computed
everywhere; or all of them would go by load alone.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence


class Expected:
    """Counts requests per worker and key. `end_at` takes effect when the time is next asked about.

    Times are of the caller's clock and only grow.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Counter[int]] = {}  # by worker id, then key
        self._ending: deque[tuple[float, str, Sequence[int]]] = deque()  # by time

    def begin(self, worker_id: str, keys: Sequence[int]) -> None:
        self._counts.setdefault(worker_id, Counter()).update(keys)

    def end(self, worker_id: str, keys: Iterable[int]) -> None:
        counts = self._counts.get(worker_id)
        if counts is None:
            return
        for key in keys:
            left = counts.get(key, 0) - 1
            if left > 0:
                counts[key] = left
            else:
                counts.pop(key, None)
        if not counts:
            del self._counts[worker_id]

    def end_at(self, time: float, worker_id: str, keys: Sequence[int]) -> None:
        self._ending.append((time, worker_id, keys))

    def refute(self, worker_id: str, keys: Iterable[int]) -> None:
        """The worker told that it does not hold them (any more): whatever was expected."""
        counts = self._counts.get(worker_id)
        if counts is not None:
            for key in keys:
                counts.pop(key, None)

    def forget(self, worker_id: str) -> None:
        self._counts.pop(worker_id, None)

    def at(self, time: float) -> Iterator[tuple[str, Counter[int]]]:
        """Of each worker, what it is expected to hold."""
        while self._ending and self._ending[0][0] <= time:
            _, worker_id, keys = self._ending.popleft()
            self.end(worker_id, keys)
        return iter(self._counts.items())
