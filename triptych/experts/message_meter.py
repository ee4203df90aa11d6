"""What a step's messages to FFN workers took, from counters that only grow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_COUNTERS = ("accepted", "round_trips", "queued", "computed")


class MessageTimes(NamedTuple):
    """Of one step's messages, in µs."""

    round_trip: float  # mean
    queue: float  # mean: waiting at the worker, for other homes' rows too
    compute: float  # mean
    busiest: float  # sum, of the worker that computed most


class MessageMeter:
    """One thread. `stats`: WORKER_STATS [workers], which somebody else counts on in."""

    def __init__(self, stats: NDArray[np.void]) -> None:
        self._stats = stats
        self._before = self._now()

    def step(self) -> MessageTimes | None:
        """Since the last call; None: no answer came."""
        now = self._now()
        passed, self._before = now - self._before, now
        answers = passed[0].sum()
        if not answers:
            return None
        round_trip, queue, compute = (passed[1:].sum(axis=1) / answers).tolist()
        return MessageTimes(round_trip, queue, compute, float(passed[-1].max()))

    def _now(self) -> NDArray[np.float64]:
        """[counters, workers]"""
        return np.stack([self._stats[name] for name in _COUNTERS]).astype(np.float64)
