"""What can go wrong between an attention process (A) and a feed-forward worker (F).

RowsError
├── RowsUnusable   this link cannot reach this worker at all (another host, no shared memory, …)
├── RowsRefused    the worker does not want us; the text is its reason
└── WorkerGone     the worker's process or its socket is no more
"""

from __future__ import annotations


class RowsError(Exception):
    pass


class RowsUnusable(RowsError):
    pass


class RowsRefused(RowsError):
    pass


class WorkerGone(RowsError):
    pass
