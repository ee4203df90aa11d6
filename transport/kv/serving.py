"""A listening socket with one thread per connection, for sources that homes connect to."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from transport.kv.sockets import shut

_log = logging.getLogger(__name__)
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class SocketServer:
    """Calls `handle(connection)` on a thread per connection, `max_connections` at most.

    `handle` returns or raises OSError when its peer is gone; the connection is closed then.
    """

    def __init__(
        self,
        listener: socket.socket,
        handle: Callable[[socket.socket], None],
        *,
        name: str,
        max_connections: int,
    ) -> None:
        self._listener = listener
        self._handle = handle
        self._name = name
        self._max_connections = max_connections
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._closing = threading.Event()
        self._accepting = threading.Thread(target=self._accept, name=f"{name}-accept", daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Ends every connection and joins every thread."""
        self._closing.set()
        shut(self._listener)
        self._accepting.join()
        self._listener.close()
        with self._lock:
            left = dict(self._open)
        for connection in left:
            shut(connection)
        for thread in left.values():
            thread.join()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    _log.warning("%s cannot accept a connection: %s", self._name, error)
                    self._closing.wait(0.1)
                continue  # the client left early, or we are closing
            self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        thread = threading.Thread(
            target=self._run, args=(connection,), name=self._name, daemon=True
        )
        with self._lock:
            if len(self._open) >= self._max_connections:
                _log.warning("%s refused a connection: it has %d", self._name, len(self._open))
                connection.close()
                return
            self._open[connection] = thread
            try:
                thread.start()
            except RuntimeError as error:  # no more threads: this client waits, the others go on
                _log.warning("%s refused a connection: %s", self._name, error)
                del self._open[connection]
                connection.close()

    def _run(self, connection: socket.socket) -> None:
        try:
            with suppress(OSError):
                self._handle(connection)
        finally:
            with self._lock:
                del self._open[connection]
            connection.close()
