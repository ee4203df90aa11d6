"""Moves runs of a flat buffer through a stream socket without copying them in between."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transport.kv.reads import Positions

MAX_IOVECS = 512  # per system call; the kernel takes 1024 at most


def flat_view(array: NDArray[np.uint8]) -> memoryview:
    """All bytes of a contiguous array, no copy."""
    buffer: Any = array.reshape(-1)  # numpy's types do not say that arrays are buffers on 3.11
    return memoryview(buffer)


class Cursor:
    """A place in a list of runs of `flat` that a stream fills or drains in order."""

    def __init__(self, flat: memoryview, lengths: Positions, starts: Positions) -> None:
        self._flat = flat
        self._runs = list(zip(starts.tolist(), lengths.tolist(), strict=True))
        self._index = 0
        self._inside = 0  # bytes of the current run that are done
        self.left = int(lengths.sum())

    def send(self, sock: socket.socket, size: int) -> None:
        """Sends the next `size` bytes. Raises OSError."""
        while size:
            size -= self._advance(sock.sendmsg(self._views(size)))

    def receive(self, sock: socket.socket, size: int) -> None:
        """Receives the next `size` bytes in place. Raises OSError."""
        while size:
            received = sock.recvmsg_into(self._views(size), 0, socket.MSG_WAITALL)[0]
            if received == 0:
                raise ConnectionError("closed by the other end")
            size -= self._advance(received)

    def _views(self, size: int) -> list[memoryview]:
        """The next bytes as iovecs, at most `size` in all."""
        views = []
        inside = self._inside
        for start, length in self._runs[self._index : self._index + MAX_IOVECS]:
            take = min(length - inside, size)
            views.append(self._flat[start + inside : start + inside + take])
            size -= take
            inside = 0
            if not size:
                break
        return views

    def _advance(self, count: int) -> int:
        self.left -= count
        self._inside += count
        while self._index < len(self._runs) and self._inside >= self._runs[self._index][1]:
            self._inside -= self._runs[self._index][1]
            self._index += 1
        return count
