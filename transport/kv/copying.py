"""Copies that run on a thread of ours and can be stopped for certain."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager

from transport.kv.base import KvLinkError, TransferTimeout

FENCE_S = 5.0  # a copy leaves within milliseconds; longer means that the machine is stuck


class Fenced(KvLinkError):
    """The copy was stopped by `fence`."""


class Interrupt:
    """Tells one copy to stop: it looks between pieces, and is shaken out of a blocking call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._raised = False
        self._abort: Callable[[], None] | None = None

    def set(self) -> None:
        with self._lock:  # held during the abort, so that it hits nothing that was given back
            self._raised = True
            if self._abort is not None:
                self._abort()

    def check(self) -> None:
        if self._raised:
            raise Fenced("fenced")

    @contextmanager
    def aborting(self, abort: Callable[[], None]) -> Iterator[None]:
        """While inside, `set` calls `abort`, which must end whatever the block waits for."""
        with self._lock:
            self.check()
            self._abort = abort
        try:
            yield
        finally:
            with self._lock:
                self._abort = None


class CopyTransfer:
    """A Transfer whose bytes are moved by one of our threads: once that returned, none can land."""

    def __init__(self, future: futures.Future[None], interrupt: Interrupt) -> None:
        self._future = future
        self._interrupt = interrupt

    def wait(self, timeout_s: float) -> None:
        if not futures.wait([self._future], timeout_s).done:
            raise TransferTimeout(f"not complete after {timeout_s:g} s")
        if self._future.cancelled():
            raise Fenced("fenced before it began")
        self._future.result()

    def fence(self) -> bool:
        if not self._future.cancel():
            self._interrupt.set()
        return bool(futures.wait([self._future], FENCE_S).done)


class CopyThreads:
    """A few threads that copy for one session; started when first needed."""

    def __init__(self, name: str, count: int) -> None:
        self._executor = futures.ThreadPoolExecutor(count, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._running: set[CopyTransfer] = set()
        self._closed = False

    def start(self, copy: Callable[[Interrupt], None]) -> CopyTransfer:
        """Queues `copy`; after `close` the transfer has failed already."""
        interrupt = Interrupt()
        with self._lock:
            future = self._submit(copy, interrupt)
            transfer = CopyTransfer(future, interrupt)
            self._running.add(transfer)
        future.add_done_callback(lambda _: self._running.discard(transfer))
        return transfer

    def _submit(
        self, copy: Callable[[Interrupt], None], interrupt: Interrupt
    ) -> futures.Future[None]:
        if not self._closed:
            return self._executor.submit(copy, interrupt)
        failed: futures.Future[None] = futures.Future()
        failed.set_exception(KvLinkError("the session is closed"))
        return failed

    def close(self) -> None:
        """Fences what still runs and joins the threads."""
        with self._lock:
            self._closed = True
        for transfer in list(self._running):
            transfer.fence()
        self._executor.shutdown(wait=True)
