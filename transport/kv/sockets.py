"""Socket settings: how long a call may stall, how soon a dead peer is noticed."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

DEAD_PEER_S = 5  # a peer whose machine or network is gone is noticed after about this long


def limit_stalls(sock: socket.socket, *, send_s: float, receive_s: float) -> None:
    """A send or receive without progress ends after this long, with BlockingIOError; 0: never.

    Kernel time-outs rather than `settimeout`: that one makes the socket non-blocking, and one
    system call (one round without the GIL) per batch would become many.
    """
    for option, seconds in ((socket.SO_SNDTIMEO, send_s), (socket.SO_RCVTIMEO, receive_s)):
        whole = int(seconds)
        limit = struct.pack("ll", whole, int((seconds - whole) * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, option, limit)


def tune_tcp(sock: socket.socket) -> None:
    """No delay for small frames; an error, not silence, when the other machine is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_S * 1000)


def shut(sock: socket.socket) -> None:
    """Wakes whoever is blocked on the socket, here and at the other end."""
    with suppress(OSError):  # never connected, or gone already
        sock.shutdown(socket.SHUT_RDWR)
