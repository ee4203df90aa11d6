"""Counters that the native side keeps, seen through numpy: any thread may read them."""

from __future__ import annotations

import numpy as np

STATUSES = ("ok", "not_here", "busy", "stale", "error")  # Status in rows_segment.h
OK, NOT_HERE, BUSY, STALE, ERROR = range(5)

_REFUSED = ("nonsense", *STATUSES[1:])  # by status

# WorkerStats in rows_worker.h: of one worker number, since A began.
WORKER_STATS = np.dtype(
    [
        *((name, np.uint64) for name in ("sent", "accepted", "late", "abandoned", "stray")),
        *((f"refused_{name}", np.uint64) for name in _REFUSED),
        *((name, np.uint64) for name in ("cells_sent", "bytes_sent", "bytes_received")),
        # Now: cells that the worker has not answered, shards that are waited for, slots lost until
        # a late answer comes.
        *((name, np.int64) for name in ("outstanding", "pending", "quarantined")),
        # µs of all accepted shards together: away in all, of that waiting at the worker, and its
        # share of what the worker computed.
        *((name, np.uint64) for name in ("round_trips", "queued", "computed")),
        # Moving averages over about 16 shards, in µs and µs².
        *((name, np.float64) for name in ("round_trip", "round_trip_variance")),
    ]
)

# InboxStats in rows_inbox.h.
INBOX_STATS = np.dtype(
    [
        *((name, np.uint64) for name in ("shards", "cells", "batches", "duplicates")),
        *((f"refused_{name}", np.uint64) for name in _REFUSED),
        *((name, np.int64) for name in ("waiting", "peers")),
    ]
)
