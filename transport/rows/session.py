"""A's hold on one worker, whatever link leads there, and the seam that links implement."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from transport.rows.hello import Offer, Welcome
from transport.rows.inbox import Inbox
from transport.rows.segment import Doorbell, Segment

OnLost = Callable[["RowsSession"], None]
"""Called once, on a thread of the session, when the worker is gone; not after `close`."""

BUDGET_BYTES = 1 << 30  # of the segments that a worker lets in by one link


class RowsSession(Protocol):
    """`segment` goes to `Exchange.add_worker`. Drop the worker there first, then close."""

    path: str  # the link's name
    segment: Segment
    reply: Mapping[str, Any]  # what the worker told of itself

    @property
    def alive(self) -> bool:
        """False for good once the worker's process or the connection has ended."""

    def close(self) -> None:
        """Not from `on_lost`."""


class RowsServer(Protocol):
    @property
    def endpoint(self) -> str:
        """JSON; its meaning is private to the link."""

    def close(self) -> None:
        """Sends every attention process away."""


class RowsLink(Protocol):
    name: str

    def serve(self, inbox: Inbox, welcome: Welcome, f_inc: int) -> RowsServer:
        """Lets attention processes in. Raises RowsUnusable."""

    def connect(
        self, endpoint: str, offer: Offer, doorbell: Doorbell, on_lost: OnLost
    ) -> RowsSession:
        """`doorbell`: our own, which the worker will ring. Raises RowsError."""


class Lost:
    """Whether the other side is gone; tells it once, unless we left first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = False

    @property
    def over(self) -> bool:
        return self._over

    def first(self) -> bool:
        with self._lock:
            was, self._over = self._over, True
        return not was
