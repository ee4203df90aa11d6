"""Small framed messages over a stream socket: a JSON head and a blob, both bounded. No pickle.

Used where both ends are ours: between a home and a TCP source, between a worker and its transport
process. The sockets are blocking; `sockets.limit_stalls` bounds every call on them.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

_PREFIX = struct.Struct("<4sII")  # magic, bytes of the head, bytes of the blob
_MAGIC = b"TKV1"
_MAX_HEAD = 64 << 10


class FrameError(Exception):
    """The other end does not speak our protocol, or not this version of it."""


def send_frame(
    sock: socket.socket, head: Mapping[str, Any], blob: bytes = b"", *, more: bool = False
) -> None:
    """`more`: raw bytes follow at once, the kernel may put them in one packet. Raises OSError."""
    text = json.dumps(head).encode()
    assert len(text) <= _MAX_HEAD, f"a frame's head of {len(text)} bytes"
    message = _PREFIX.pack(_MAGIC, len(text), len(blob)) + text + blob
    sock.sendall(message, socket.MSG_MORE if more else 0)


def recv_frame(sock: socket.socket, max_blob: int = 0) -> tuple[dict[str, Any], bytes]:
    """Raises FrameError, or OSError: ConnectionError at the end, BlockingIOError on a stall."""
    magic, head_bytes, blob_bytes = _PREFIX.unpack(recv_exactly(sock, _PREFIX.size))
    if magic != _MAGIC:
        raise FrameError("not a frame of ours, or of another version")
    if head_bytes > _MAX_HEAD or blob_bytes > max_blob:
        raise FrameError(f"a frame of {head_bytes}+{blob_bytes} bytes is too large")
    try:
        head = json.loads(recv_exactly(sock, head_bytes))
    except ValueError as error:
        raise FrameError(f"a frame's head is not JSON: {error}") from error
    if not isinstance(head, dict):
        raise FrameError("a frame's head is not an object")
    return head, bytes(recv_exactly(sock, blob_bytes))


def recv_exactly(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        received = sock.recv_into(view, 0, socket.MSG_WAITALL)
        if received == 0:
            raise ConnectionError("closed by the other end")
        view = view[received:]
    return data
