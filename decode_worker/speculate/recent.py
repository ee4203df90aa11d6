"""The last few measurements of one thing, and what they say together."""

from __future__ import annotations

KEEP = 31  # enough that spoilt samples do not matter, few enough to follow drift
HALF_LIFE = 256  # steps after which an old measurement counts half


class Recent:
    """A median that forgets. Time is counted in steps, never read from a clock."""

    __slots__ = ("_at", "_median", "_values")

    def __init__(self) -> None:
        self._values: list[float] = []
        self._median = 0.0
        self._at = 0

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float, step: int) -> None:
        self._values.append(value)
        if len(self._values) > KEEP:
            del self._values[0]
        self._median = median(self._values)
        self._at = step

    @property
    def median(self) -> float:
        return self._median

    @property
    def least(self) -> float:
        return min(self._values)

    def weight(self, step: int) -> float:
        """How much it is worth, in fresh samples."""
        age = step - self._at
        fade: float = 0.5 ** (age / HALF_LIFE)
        return len(self._values) * fade


def median(values: list[float]) -> float:
    """statistics.median without its generality: it runs in every step."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2
