"""Blocks over our own TCP protocol, received straight into the target blocks.

Works between any two hosts. Each fetch leases one of its session's connections; its fence shuts
that connection down and waits for the receiving thread, after which nothing can land.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial

from transport.kv.base import BlockRead, KvLinkError, LinkUnusable, PeerGone, StaleBlock
from transport.kv.copying import CopyThreads, CopyTransfer, Interrupt
from transport.kv.endpoints import check_shapes, parse_endpoint
from transport.kv.reads import read_table
from transport.kv.region import Region, RegionShape
from transport.kv.tcp_connection import TcpAddress, TcpConnection
from transport.kv.tcp_source import TcpSource

CONNECTIONS = 2  # of one session, a thread each; more fetches wait for their turn


class TcpLink:
    """`host`: the address that our sources listen on and that homes connect to."""

    name = "tcp"

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host

    def serve(self, region: Region) -> TcpSource:
        return TcpSource(region, self._host)

    def connect(self, endpoint: str, region: Region) -> TcpSession:
        fields = parse_endpoint(endpoint, {"host": str, "port": int, "token": str})
        address = TcpAddress(fields["host"], fields["port"], fields["token"])
        with ExitStack() as undo:
            connection = undo.enter_context(closing(TcpConnection(address)))
            peer = connection.open()
            check_shapes(peer, region.shape)
            connection.probe()
            undo.pop_all()
        return TcpSession(address, peer, connection, region)


class TcpSession:
    """Connections to one source: opened when needed, kept while they are sound."""

    path = "tcp"

    def __init__(
        self, address: TcpAddress, peer: RegionShape, first: TcpConnection, region: Region
    ) -> None:
        self._address = address
        self._peer = peer
        self._region = region
        self._threads = CopyThreads("kv-tcp-fetch", CONNECTIONS)
        self._lock = threading.Lock()
        self._idle = [first]
        self._alive = True

    @property
    def alive(self) -> bool:
        return self._alive

    def start(self, reads: Sequence[BlockRead]) -> CopyTransfer:
        return self._threads.start(partial(self._fetch, reads))

    def close(self) -> None:
        self._alive = False
        self._threads.close()
        while self._idle:
            self._idle.pop().close()

    def _fetch(self, reads: Sequence[BlockRead], interrupt: Interrupt) -> None:
        table = read_table(reads, self._peer, self._region.shape)
        if not self._alive:
            raise PeerGone(f"{self._address} went away")
        connection = self._lease()
        sound = False
        try:
            with interrupt.aborting(connection.abort):
                connection.open()
                connection.fetch(table, self._region)
            sound = not connection.aborted
        except StaleBlock:
            sound = not connection.aborted
            raise
        except KvLinkError as error:
            interrupt.check()  # our own abort looks like a peer that left
            self._alive = self._alive and not isinstance(error, PeerGone | LinkUnusable)
            raise
        finally:
            self._give_back(connection, sound)

    def _lease(self) -> TcpConnection:
        with self._lock:
            return self._idle.pop() if self._idle else TcpConnection(self._address)

    def _give_back(self, connection: TcpConnection, sound: bool) -> None:
        if not sound:
            connection.close()
            return
        with self._lock:
            self._idle.append(connection)
