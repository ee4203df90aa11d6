"""How many sequences may run so that tokens keep their pace: more sequences make longer steps."""

from __future__ import annotations

import math

_LOOK_S = 0.5
_MIN_TOKENS = 32  # fewer tell nothing
_DOWN, _UP = 0.9, 1.05


class TempoLimit:
    """A limit on sequences, moved as congestion control moves a window: less by a tenth after
    tokens were slower than the target, slowly more while they are faster and the limit is in use.

    Pure: it is told times, and what was measured.
    """

    def __init__(self, itl_s: float | None) -> None:
        self._itl_s = itl_s
        self.sequences = math.inf
        self._looked_at = -math.inf
        self._tokens = 0
        self._seconds = 0.0

    def look(self, tokens: int, seconds: float, running: int, now: float) -> None:
        """`tokens` so far and the sum of their times; `running` sequences now."""
        if self._itl_s is None or now - self._looked_at < _LOOK_S:
            return
        new, spent = tokens - self._tokens, seconds - self._seconds
        if new < _MIN_TOKENS:
            return
        self._tokens, self._seconds, self._looked_at = tokens, seconds, now
        if spent / new > self._itl_s:
            self.sequences = max(1.0, _DOWN * min(self.sequences, max(1, running)))
        elif running >= self.sequences:
            self.sequences = max(self.sequences + 1, self.sequences * _UP)
