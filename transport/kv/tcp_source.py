"""The source's end of the tcp link: serves reads of the pool to homes that know its token.

Frames of `transport.kv.frames`, raw bytes in between; one exchange at a time:

    home: {"token"}                     source: {"block_bytes", "num_blocks"} | {"refused"}
    home: {"op": "probe"}               source: {"bytes"} bytes {"end": "ok"}
    home: {"op": "read"} + READ table   source: ({"bytes"} bytes)* {"end": "ok" | "stale" | "bad"}

Generations are checked before each batch and, for all that went out, after it; `sendmsg` copies, so
the check after it is exact. A peer can neither crash nor exhaust the source: every size is
bounded, every block id is checked, and a connection that breaks the protocol is closed.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket

import numpy as np

from transport.kv.base import LinkUnusable
from transport.kv.frames import FrameError, recv_frame, send_frame
from transport.kv.iovecs import Cursor, flat_view
from transport.kv.reads import (
    MAX_READS,
    READ,
    ReadTable,
    cut_batches,
    first_outside,
    first_stale,
    lengths_of,
    merge_runs,
    positions,
)
from transport.kv.region import Region
from transport.kv.serving import SocketServer
from transport.kv.sockets import limit_stalls, tune_tcp

BATCH_BYTES = 8 << 20  # sent between two looks at the generations
HELLO_S = 5.0
STALL_S = 10.0  # without progress in the middle of an exchange
MAX_CONNECTIONS = 256


class TcpSource:
    """A pool behind a TCP port."""

    def __init__(self, region: Region, host: str) -> None:
        self._region = region
        self._token = secrets.token_hex(16)
        self._host = host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, 0), family=family)
        except OSError as error:
            raise LinkUnusable(f"cannot listen on {host}: {error}") from error
        self._port: int = listener.getsockname()[1]
        self._server = SocketServer(
            listener, self._converse, name="kv-tcp", max_connections=MAX_CONNECTIONS
        )

    @property
    def endpoint(self) -> str:
        return json.dumps({"host": self._host, "port": self._port, "token": self._token})

    def close(self) -> None:
        self._server.close()

    def _converse(self, connection: socket.socket) -> None:
        tune_tcp(connection)
        limit_stalls(connection, send_s=STALL_S, receive_s=HELLO_S)
        try:
            if not self._greet(connection):
                return
            limit_stalls(connection, send_s=STALL_S, receive_s=0)  # a home may be idle for hours
            while True:
                head, blob = recv_frame(connection, MAX_READS * READ.itemsize)
                if head.get("op") == "probe":
                    self._send_probe(connection)
                elif head.get("op") == "read":
                    self._send_reads(connection, blob)
                else:
                    raise FrameError(f"unknown operation {head.get('op')!r}")
        except FrameError as error:
            send_frame(connection, {"end": "bad", "detail": str(error)})

    def _greet(self, connection: socket.socket) -> bool:
        hello, _ = recv_frame(connection)
        token = str(hello.get("token")).encode()
        if not hmac.compare_digest(token, self._token.encode()):
            send_frame(connection, {"refused": "wrong token"})
            return False
        shape = self._region.shape
        send_frame(connection, {"block_bytes": shape.block_bytes, "num_blocks": shape.num_blocks})
        return True

    def _send_probe(self, connection: socket.socket) -> None:
        probe = self._region.probe
        send_frame(connection, {"bytes": probe.nbytes}, more=True)
        connection.sendall(flat_view(probe))
        send_frame(connection, {"end": "ok"})

    def _send_reads(self, connection: socket.socket, blob: bytes) -> None:
        if len(blob) % READ.itemsize:
            raise FrameError("a table of reads with half a row")
        table = np.frombuffer(blob, dtype=READ)
        outside = first_outside(table, "source", self._region.shape)
        if outside is not None:
            raise FrameError(f"read {outside} lies outside the pool")
        stale = self._send_blocks(connection, table)
        end = {"end": "ok"} if stale is None else {"end": "stale", "block": stale}
        send_frame(connection, end)

    def _send_blocks(self, connection: socket.socket, table: ReadTable) -> int | None:
        """Sends every read in order; stops at a block that was handed out again and returns it."""
        flat = flat_view(self._region.blocks)
        generations = self._region.generations
        lengths = lengths_of(table)
        starts = positions(table, "source", self._region.shape)
        for batch in cut_batches(lengths, BATCH_BYTES):
            stale = first_stale(table[batch], generations)
            if stale is not None:
                return int(table["source"][batch][stale])
            cursor = Cursor(flat, *merge_runs(lengths[batch], starts[batch]))
            send_frame(connection, {"bytes": cursor.left}, more=True)
            cursor.send(connection, cursor.left)
            stale = first_stale(table[: batch.stop], generations)  # all that went out so far
            if stale is not None:
                return int(table["source"][stale])
        return None
