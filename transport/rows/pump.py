"""The two threads that mirror a segment over a socket; they run native code, without the GIL."""

from __future__ import annotations

import ctypes
import socket
import threading
from collections.abc import Callable

from transport.kv.sockets import shut
from transport.rows.base import RowsUnusable
from transport.rows.library import RowsLibrary, SegmentShape
from transport.rows.segment import Doorbell

PUMP_SPIN_US = 20


class Pump:
    """`bell`: what our own exchange or inbox rings. `theirs`: what we ring when something came.

    `on_end` is called once, on a thread of the pump, when the connection has ended by itself.
    """

    def __init__(
        self, library: RowsLibrary, memory: int, shape: SegmentShape, connection: socket.socket,
        theirs: Doorbell,
    ) -> None:  # fmt: skip
        self._library = library
        self._connection = connection
        self._theirs = theirs  # kept: the native side rings it
        self.bell = Doorbell(library)
        self._threads: list[threading.Thread] = []
        self._handle: int | None = library.pump_new(
            memory,
            ctypes.byref(shape.struct()),
            *(connection.fileno(), self.bell.handle, theirs.handle, PUMP_SPIN_US),
        )
        if self._handle is None:
            self.bell.close()
            raise RowsUnusable("the segment of a connection cannot be mapped")

    def start_of_attention(self, on_end: Callable[[], None]) -> None:
        self._start(self._library.requests_out, self._library.results_in, on_end)

    def run_of_worker(self) -> None:
        """Returns when the connection has ended."""
        ended = threading.Event()
        self._start(self._library.results_out, self._library.requests_in, ended.set)
        ended.wait()

    def close(self) -> None:
        """Ends the connection and joins the threads; not from one of them."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        self._library.pump_stop(handle)
        shut(self._connection)
        for thread in self._threads:
            thread.join()
        self._library.pump_free(handle)
        self.bell.close()

    def _start(
        self, out: Callable[[int], int], into: Callable[[int], int], on_end: Callable[[], None]
    ) -> None:
        def carry(way: Callable[[int], int]) -> None:
            assert self._handle is not None
            way(self._handle)
            shut(self._connection)  # so that the other way ends too
            if way is into:
                on_end()

        for name, way in (("out", out), ("in", into)):
            thread = threading.Thread(
                target=carry, args=(way,), name=f"rows-tcp-{name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
