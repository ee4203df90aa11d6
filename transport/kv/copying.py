"""Copies that run on a thread of ours and can be stopped for certain."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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


Copy = Callable[[Interrupt], None]


class CopyTransfer:
    """A Transfer whose bytes are moved by one of our threads: once that left, none can land."""

    def __init__(self, copy: Copy) -> None:
        self._copy = copy
        self._interrupt = Interrupt()
        self._lock = threading.Lock()
        self._begun = False
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Copies, on the calling thread, unless fenced before."""
        with self._lock:
            if self._ended.is_set():
                return
            self._begun = True
        try:
            self._copy(self._interrupt)
        except BaseException as error:  # `wait` raises it again, where somebody can act
            self._error = error
        finally:
            self._ended.set()

    def wait(self, timeout_s: float) -> None:
        if not self._ended.wait(timeout_s):
            raise TransferTimeout(f"not complete after {timeout_s:g} s")
        if self._error is not None:
            raise self._error

    def fence(self) -> bool:
        self.drop(Fenced("fenced before it began"))
        self._interrupt.set()
        return self._ended.wait(FENCE_S)

    def drop(self, error: KvLinkError) -> None:
        """Fails the transfer if no thread took it up yet; then none will."""
        with self._lock:
            if not self._begun and not self._ended.is_set():
                self._error = error
                self._ended.set()


class CopyThreads:
    """A few threads that copy for one session; started when first needed."""

    def __init__(self, name: str, count: int) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._open: set[CopyTransfer] = set()
        self._closed = False

    def start(self, copy: Copy) -> CopyTransfer:
        """Queues `copy`; after `close` the transfer has failed already."""
        transfer = CopyTransfer(copy)
        with self._lock:
            if self._closed:
                transfer.drop(KvLinkError("the session is closed"))
            else:
                self._open.add(transfer)
                self._executor.submit(self._run, transfer)
        return transfer

    def close(self) -> None:
        """Fences what is queued or running and joins the threads."""
        with self._lock:
            self._closed = True
            left = list(self._open)
        for transfer in left:
            transfer.fence()
        self._executor.shutdown(wait=True)

    def _run(self, transfer: CopyTransfer) -> None:
        transfer.run()
        with self._lock:
            self._open.discard(transfer)
