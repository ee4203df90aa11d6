"""Is what the index says true? Predictions against what the worker that prefilled really had.

An index that is told of changes goes wrong in silence: after a bug, or where hashes differ. So it
is compared, always, with what requests report anyway.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from router.index.metrics import IndexMetrics

_WINDOW = 64  # requests
_LEAST = 8
_MAX_ERROR = 0.01
_FIRST_REST_S = 5.0  # doubled while snapshots do not help: then something else is wrong
_LONGEST_REST_S = 300.0


@dataclass(slots=True)
class _Record:
    window: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    rest_s: float = _FIRST_REST_S
    rests_until: float = 0.0


class Audit:
    """Asks for a snapshot of a worker whose predictions are wrong by more than one per cent."""

    def __init__(
        self,
        ask_snapshot: Callable[[str], None],
        metrics: IndexMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask_snapshot = ask_snapshot
        self._metrics = metrics
        self._clock = clock
        self._records: dict[str, _Record] = {}

    def compare(self, worker_id: str, predicted: int, actual: int) -> None:
        """Prompt tokens of one request."""
        self._metrics.predicted_tokens.labels(worker_id).inc(predicted)
        self._metrics.actual_tokens.labels(worker_id).inc(actual)
        self._metrics.error_tokens.labels(worker_id).inc(abs(predicted - actual))
        record = self._records.setdefault(worker_id, _Record())
        record.window.append((predicted, actual))
        if len(record.window) < _LEAST:
            return
        if relative_error(record.window) <= _MAX_ERROR:
            record.rest_s = _FIRST_REST_S
        elif self._clock() >= record.rests_until:
            record.rests_until = self._clock() + record.rest_s
            record.rest_s = min(_LONGEST_REST_S, 2 * record.rest_s)
            record.window.clear()
            self._metrics.drifts.labels(worker_id).inc()
            self._ask_snapshot(worker_id)

    def forget(self, worker_id: str) -> None:
        self._records.pop(worker_id, None)


def relative_error(pairs: Sequence[tuple[int, int]]) -> float:
    """Of (predicted, actual): the sum of differences over the sum of the larger ones."""
    total = sum(max(pair) for pair in pairs)
    return sum(abs(predicted - actual) for predicted, actual in pairs) / total if total else 0.0
