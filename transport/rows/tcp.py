"""Rows over TCP, between any two hosts: the same segment on both ends, mirrored by pump threads.

Whoever connects shows the token of the endpoint. A connection that breaks is a worker that is gone:
its segment is dropped on both ends, and nothing of it can arrive later.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from contextlib import ExitStack, closing, suppress

from transport.kv.base import LinkUnusable
from transport.kv.endpoints import parse_endpoint
from transport.kv.frames import FrameError, recv_frame, send_frame
from transport.kv.serving import SocketServer
from transport.kv.sockets import limit_stalls, tune_tcp
from transport.rows.base import RowsRefused, RowsUnusable, WorkerGone
from transport.rows.hello import Answer, Door, Offer, Welcome, read_answer, read_offer
from transport.rows.inbox import Inbox
from transport.rows.library import RowsLibrary
from transport.rows.pump import Pump
from transport.rows.segment import Doorbell, Segment, create_memory
from transport.rows.session import BUDGET_BYTES, Lost, OnLost

HELLO_S = 5.0
STALL_S = 10.0  # of a send without progress
MAX_PEERS = 256


class TcpRowsLink:
    """`host`: the address that our servers listen on and that attention processes connect to."""

    name = "tcp"

    def __init__(self, library: RowsLibrary, host: str = "127.0.0.1") -> None:
        self._library = library
        self._host = host

    def serve(
        self, inbox: Inbox, welcome: Welcome, f_inc: int, *, budget_bytes: int = BUDGET_BYTES
    ) -> TcpRowsServer:
        door = Door(self._library, inbox.hidden, f_inc, welcome, budget_bytes)
        return TcpRowsServer(self._library, inbox, door, self._host)

    def connect(
        self, endpoint: str, offer: Offer, doorbell: Doorbell, on_lost: OnLost
    ) -> TcpRowsSession:
        try:
            fields = parse_endpoint(endpoint, {"host": str, "port": int, "token": str})
        except LinkUnusable as error:
            raise RowsUnusable(str(error)) from error
        with ExitStack() as undo:
            connection = undo.enter_context(closing(_reach(fields["host"], fields["port"])))
            answer = _introduce(connection, offer, fields["token"])
            memory = _memory_for(self._library, offer)
            undo.callback(os.close, memory)
            pump = Pump(self._library, memory, offer.shape, connection, doorbell)
            undo.callback(pump.close)
            bell = os.dup(pump.bell.fd)
            undo.pop_all()
        segment = Segment(memory, offer.shape, offer.a_inc, answer.f_inc, bell)
        return TcpRowsSession(connection, pump, segment, answer, on_lost)


class TcpRowsSession:
    """One worker, anywhere."""

    path = "tcp"

    def __init__(
        self,
        connection: socket.socket,
        pump: Pump,
        segment: Segment,
        answer: Answer,
        on_lost: OnLost,
    ) -> None:
        self.segment = segment
        self.reply = answer.reply
        self._connection = connection
        self._pump = pump
        self._on_lost = on_lost
        self._lost = Lost()
        pump.start_of_attention(self._ended)

    @property
    def alive(self) -> bool:
        return not self._lost.over

    def close(self) -> None:
        self._lost.first()
        self._pump.close()
        self._connection.close()
        self.segment.close()

    def _ended(self) -> None:
        if self._lost.first():
            self._on_lost(self)


class TcpRowsServer:
    """Lets attention processes in, three threads each."""

    def __init__(self, library: RowsLibrary, inbox: Inbox, door: Door, host: str) -> None:
        self._library = library
        self._inbox = inbox
        self._door = door
        self._token = secrets.token_hex(16)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, 0), family=family)
        except OSError as error:
            raise RowsUnusable(f"cannot listen on {host}: {error}") from error
        self._host, self._port = host, listener.getsockname()[1]
        self._server = SocketServer(
            listener, self._welcome, name="rows-tcp", max_connections=MAX_PEERS
        )

    @property
    def endpoint(self) -> str:
        return json.dumps({"host": self._host, "port": self._port, "token": self._token})

    def close(self) -> None:
        self._server.close()

    def _welcome(self, connection: socket.socket) -> None:
        tune_tcp(connection)
        limit_stalls(connection, send_s=HELLO_S, receive_s=HELLO_S)
        try:
            with suppress(FrameError):
                self._admit(connection)
        except RowsRefused as refusal:
            send_frame(connection, {"refused": str(refusal)})

    def _admit(self, connection: socket.socket) -> None:
        head, _ = recv_frame(connection)
        if not secrets.compare_digest(str(head.get("token")).encode(), self._token.encode()):
            raise RowsRefused("wrong token")
        offer = read_offer(head)
        with self._door.admit(offer) as answer, ExitStack() as leave:
            try:
                memory = _memory_for(self._library, offer)
                leave.callback(os.close, memory)
                pump = Pump(self._library, memory, offer.shape, connection, self._inbox.doorbell)
                leave.callback(pump.close)
                peer = self._inbox.add_peer(
                    Segment(memory, offer.shape, offer.a_inc, answer.f_inc, pump.bell.fd)
                )
            except RowsUnusable as error:
                raise RowsRefused(str(error)) from error
            leave.callback(self._inbox.drop_peer, peer)
            send_frame(connection, answer.to_json())
            limit_stalls(connection, send_s=STALL_S, receive_s=0)
            pump.run_of_worker()


def _memory_for(library: RowsLibrary, offer: Offer) -> int:
    try:
        return create_memory(library, offer.shape)
    except OSError as error:
        raise RowsUnusable(f"no memory for a segment: {error}") from error


def _reach(host: str, port: int) -> socket.socket:
    try:
        connection = socket.create_connection((host, port), timeout=HELLO_S)
    except ConnectionError as error:
        raise WorkerGone(f"nobody listens on {host}:{port} any more") from error
    except OSError as error:
        raise RowsUnusable(f"cannot reach {host}:{port}: {error}") from error
    connection.settimeout(None)
    tune_tcp(connection)
    limit_stalls(connection, send_s=HELLO_S, receive_s=HELLO_S)
    return connection


def _introduce(connection: socket.socket, offer: Offer, token: str) -> Answer:
    try:
        send_frame(connection, {"token": token, **offer.to_json()})
        head, _ = recv_frame(connection)
    except (OSError, FrameError) as error:
        raise WorkerGone(f"the worker did not answer our hello: {error}") from error
    limit_stalls(connection, send_s=STALL_S, receive_s=0)
    return read_answer(head)
