"""The home's end of one connection; `transport.kv.tcp_source` tells the protocol."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from transport.kv.base import KvLinkError, LinkUnusable, PeerGone, StaleBlock, TransferTimeout
from transport.kv.frames import FrameError, recv_exactly, recv_frame, send_frame
from transport.kv.iovecs import Cursor, flat_view
from transport.kv.reads import ReadTable, lengths_of, merge_runs, positions
from transport.kv.region import Region, RegionShape, probe_pattern
from transport.kv.sockets import limit_stalls, shut, tune_tcp

CONNECT_S = 5.0
STALL_S = 10.0  # without a byte; the caller's own time-out usually comes first


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int
    token: str  # random per source; whoever reads the endpoint may read the pool

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class TcpConnection:
    """One exchange at a time; only `abort` may be called from another thread."""

    def __init__(self, address: TcpAddress) -> None:
        self._address = address
        self._sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
        self._peer: RegionShape | None = None
        self.aborted = False

    def open(self) -> RegionShape:
        """Connects and shows the token, unless done. Raises KvLinkError."""
        if self._peer is None:
            self._connect()
            with self._as_link_errors():
                send_frame(self._sock, {"token": self._address.token})
                hello, _ = recv_frame(self._sock)
                if "refused" in hello:
                    raise LinkUnusable(f"{self._address} refused us: {hello['refused']}")
                self._peer = RegionShape(_whole(hello, "block_bytes"), _whole(hello, "num_blocks"))
        return self._peer

    def probe(self) -> None:
        """Brings the probe page over. Raises LinkUnusable when other bytes arrive."""
        wanted = probe_pattern(self.open())
        with self._as_link_errors():
            send_frame(self._sock, {"op": "probe"})
            if _whole(self._next(), "bytes") != wanted.nbytes:
                raise FrameError("a probe of another size")
            page = recv_exactly(self._sock, wanted.nbytes)
            self._next()
        if not np.array_equal(np.frombuffer(page, dtype=np.uint8), wanted):
            raise LinkUnusable(f"{self._address}: the probe page arrived with other bytes")

    def fetch(self, table: ReadTable, region: Region) -> None:
        """Receives every read into `region`. After any error but StaleBlock, close."""
        lengths, starts = merge_runs(lengths_of(table), positions(table, "target", region.shape))
        cursor = Cursor(flat_view(region.blocks), lengths, starts)
        with self._as_link_errors():
            send_frame(self._sock, {"op": "read"}, table.tobytes())
            while (head := self._next()).get("end") != "ok":
                size = _whole(head, "bytes")
                if size > cursor.left:
                    raise FrameError(f"{size} bytes more, {cursor.left} wanted")
                cursor.receive(self._sock, size)
            if cursor.left:
                raise FrameError(f"ended {cursor.left} bytes early")

    def abort(self) -> None:
        self.aborted = True
        shut(self._sock)

    def close(self) -> None:
        self._sock.close()

    def _connect(self) -> None:
        try:
            self._sock.settimeout(CONNECT_S)
            self._sock.connect((self._address.host, self._address.port))
            self._sock.settimeout(None)
            tune_tcp(self._sock)
            limit_stalls(self._sock, send_s=STALL_S, receive_s=STALL_S)
        except ConnectionError as error:
            raise PeerGone(f"nobody listens on {self._address} any more") from error
        except OSError as error:
            raise LinkUnusable(f"cannot reach {self._address}: {error}") from error
        if self.aborted:  # before there was a connection to shut down
            raise PeerGone("aborted")

    def _next(self) -> dict[str, Any]:
        """The next frame of an exchange. Raises when it says that the exchange failed."""
        head, _ = recv_frame(self._sock)
        match head.get("end"):
            case "stale":
                raise StaleBlock(f"block {head.get('block')} was handed out again")
            case "bad":
                raise KvLinkError(f"{self._address} refused the request: {head.get('detail')}")
        return head

    @contextmanager
    def _as_link_errors(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError as error:
            raise TransferTimeout(f"{self._address} sent nothing for {STALL_S:g} s") from error
        except OSError as error:
            raise PeerGone(f"{self._address}: {error}") from error
        except FrameError as error:
            raise KvLinkError(f"{self._address}: {error}") from error


def _whole(head: dict[str, Any], name: str) -> int:
    value = head.get(name)
    if not isinstance(value, int) or value < 1:
        raise FrameError(f"{name!r} is not a positive number")
    return value
