"""One worker's cache, followed by what it tells on one call. Decides; knows nothing of gRPC.

Every change has a number, so that a loss shows: as a gap before the next message, or as a part of
a snapshot that does not follow the one before it. Then a snapshot is asked for. What is known stays
in use until that is here as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from router.index.holdings import Holding
from router.index.keys import distinct_keys
from router.index.kv_index import KvIndex
from router.index.metrics import IndexMetrics
from transport.protos import worker_pb2 as pb

_ASK_AGAIN_S = 1.0  # a lost question, or a lost answer


class Follower:
    """`close` when the call ends: the index then knows nothing of this worker."""

    def __init__(
        self,
        index: KvIndex,
        worker_id: str,
        metrics: IndexMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index = index
        self._worker_id = worker_id
        self._metrics = metrics
        self._clock = clock
        self._position: int | None = None  # behind the last change known; None: no snapshot yet
        self._waits_since: float | None = clock()  # for a snapshot; the worker begins with one
        self._stage: Holding | None = None  # the snapshot that is coming
        self._next_part = 0

    def take(self, events: pb.KvEvents) -> bool:
        """Applies a message; whether a snapshot has to be asked for.

        Raises RequestError when it cannot be read.
        """
        if events.HasField("part"):
            return self._take_part(events)
        lost = self._drop_stage()  # nothing comes between the parts of a snapshot
        if self._position is not None and events.end > self._position:
            if events.first > self._position:
                self._metrics.gaps.labels(self._worker_id).inc()
                lost = True
            self._apply(events)
            self._position = events.end
        return self._wants_snapshot(lost)

    def doubt(self) -> bool:
        """What is known seems to be wrong; whether to ask for a snapshot, or one is coming."""
        return self._waits_since is None and self._wants_snapshot(True)

    def close(self) -> None:
        self._drop_stage()
        self._index.withdraw(self._worker_id)

    def _wants_snapshot(self, lost: bool) -> bool:
        now = self._clock()
        if self._waits_since is not None and now - self._waits_since >= _ASK_AGAIN_S:
            lost = True
        if lost:
            self._waits_since = now
        return lost

    def _apply(self, events: pb.KvEvents) -> None:
        removed, stored = distinct_keys(events.removed), distinct_keys(events.stored)
        if removed.size:
            self._index.remove(self._worker_id, removed)
        if stored.size:
            self._index.store(self._worker_id, stored)
        self._metrics.events.labels(self._worker_id, "removed").inc(removed.size)
        self._metrics.events.labels(self._worker_id, "stored").inc(stored.size)

    def _take_part(self, events: pb.KvEvents) -> bool:
        part = events.part
        if part.index == 0:
            self._drop_stage()
            self._stage = self._index.holdings.open()
        elif self._stage is None or part.index != self._next_part:
            return self._wants_snapshot(self._drop_stage())
        assert self._stage is not None, "opened with part 0"
        self._stage.add(distinct_keys(events.stored))
        self._next_part = part.index + 1
        if self._next_part == part.count:
            self._index.replace(self._worker_id, self._stage)
            self._stage, self._position, self._waits_since = None, events.end, None
            self._metrics.snapshots.labels(self._worker_id).inc()
        return self._wants_snapshot(False)

    def _drop_stage(self) -> bool:
        """Whether there was one."""
        stage, self._stage = self._stage, None
        if stage is not None:
            stage.close()
        return stage is not None
