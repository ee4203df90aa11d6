"""Rows through shared memory, on one host.

A reaches F's unix socket in the run directory (mode 0600) and hands over the descriptors of a new
segment and of its doorbell; F hands over its own doorbell. The socket stays open: its end tells
each that the other one is no more, a killed one too.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from transport.kv.base import LinkUnusable
from transport.kv.endpoints import boot_id, parse_endpoint
from transport.kv.frames import FrameError, recv_frame, send_frame
from transport.kv.serving import SocketServer
from transport.kv.sockets import limit_stalls, shut
from transport.kv.unix_sockets import connect_to, listen_at, sweep_sockets
from transport.rows.base import RowsRefused, RowsUnusable, WorkerGone
from transport.rows.hello import Answer, Door, Offer, Welcome, read_answer, read_offer
from transport.rows.inbox import Inbox
from transport.rows.library import RowsLibrary
from transport.rows.segment import Doorbell, Segment, create_memory
from transport.rows.session import BUDGET_BYTES, Lost, OnLost

HELLO_S = 5.0
MAX_PEERS = 256
_FD_MARK = b"\0"  # descriptors need at least one byte to travel with


class ShmRowsLink:
    """Same host, same run directory."""

    name = "shm"

    def __init__(self, library: RowsLibrary, run_dir: Path) -> None:
        self._library = library
        self._run_dir = run_dir

    def serve(
        self, inbox: Inbox, welcome: Welcome, f_inc: int, *, budget_bytes: int = BUDGET_BYTES
    ) -> ShmRowsServer:
        door = Door(self._library, inbox.hidden, f_inc, welcome, budget_bytes)
        return ShmRowsServer(inbox, door, self._run_dir)

    def connect(
        self, endpoint: str, offer: Offer, doorbell: Doorbell, on_lost: OnLost
    ) -> ShmRowsSession:
        try:
            fields = parse_endpoint(endpoint, {"socket": str, "boot_id": str, "worker": str})
        except LinkUnusable as error:
            raise RowsUnusable(str(error)) from error
        if fields["boot_id"] != boot_id():
            raise RowsUnusable("the worker runs on another host")
        with ExitStack() as undo:
            connection = _reach(Path(fields["socket"]))
            undo.callback(connection.close)
            try:
                memory = create_memory(self._library, offer.shape)
            except OSError as error:
                raise RowsUnusable(f"no memory for a segment: {error}") from error
            undo.callback(os.close, memory)
            answer, bell = _introduce(connection, offer, fields["worker"], memory, doorbell)
            undo.pop_all()
        segment = Segment(memory, offer.shape, offer.a_inc, answer.f_inc, bell)
        return ShmRowsSession(connection, segment, answer, on_lost)


class ShmRowsSession:
    """One worker of this host."""

    path = "shm"

    def __init__(
        self, connection: socket.socket, segment: Segment, answer: Answer, on_lost: OnLost
    ) -> None:
        self.segment = segment
        self.reply = answer.reply
        self._connection = connection
        self._on_lost = on_lost
        self._lost = Lost()
        self._watch = threading.Thread(target=self._watch_over, name="rows-watch", daemon=True)
        self._watch.start()

    @property
    def alive(self) -> bool:
        return not self._lost.over

    def close(self) -> None:
        self._lost.first()
        shut(self._connection)
        self._watch.join()
        self._connection.close()
        self.segment.close()

    def _watch_over(self) -> None:
        with suppress(OSError):
            while self._connection.recv(4096):  # a worker never speaks; this ends when it leaves
                pass
        if self._lost.first():
            self._on_lost(self)


class ShmRowsServer:
    """Lets attention processes of this host in, a thread each that waits for their end."""

    def __init__(self, inbox: Inbox, door: Door, run_dir: Path) -> None:
        self._inbox = inbox
        self._door = door
        self._worker = secrets.token_hex(8)  # tells this worker from another behind the same path
        self._path = run_dir / f"rows-{self._worker}.sock"
        try:
            sweep_sockets(run_dir, "rows-*.sock")
            listener = listen_at(self._path)
        except OSError as error:
            raise RowsUnusable(f"cannot listen on {self._path}: {error}") from error
        self._server = SocketServer(
            listener, self._welcome, name="rows-shm", max_connections=MAX_PEERS
        )

    @property
    def endpoint(self) -> str:
        path = str(self._path.absolute())
        return json.dumps({"socket": path, "boot_id": boot_id(), "worker": self._worker})

    def close(self) -> None:
        self._server.close()
        self._path.unlink(missing_ok=True)

    def _welcome(self, connection: socket.socket) -> None:
        limit_stalls(connection, send_s=HELLO_S, receive_s=HELLO_S)
        try:
            with _received(connection, 2) as (memory, bell), suppress(FrameError):
                self._admit(connection, memory, bell)
        except RowsRefused as refusal:
            send_frame(connection, {"refused": str(refusal)})

    def _admit(self, connection: socket.socket, memory: int, bell: int) -> None:
        head, _ = recv_frame(connection)
        if head.get("worker") != self._worker:
            raise RowsRefused("another worker answers behind the path of the one you look for")
        offer = read_offer(head)
        with self._door.admit(offer) as answer, ExitStack() as leave:
            segment = Segment(memory, offer.shape, offer.a_inc, answer.f_inc, bell)
            try:
                peer = self._inbox.add_peer(segment)
            except RowsUnusable as error:
                raise RowsRefused(str(error)) from error
            leave.callback(self._inbox.drop_peer, peer)
            send_frame(connection, answer.to_json())
            socket.send_fds(connection, [_FD_MARK], [self._inbox.doorbell.fd])
            limit_stalls(connection, send_s=HELLO_S, receive_s=0)
            while connection.recv(4096):  # it never speaks again; this ends when it leaves
                pass


def _reach(path: Path) -> socket.socket:
    try:
        connection = connect_to(path)
    except ConnectionRefusedError as error:
        raise WorkerGone(f"nobody listens on {path} any more") from error
    except OSError as error:
        raise RowsUnusable(f"cannot reach {path} from here: {error}") from error
    limit_stalls(connection, send_s=HELLO_S, receive_s=HELLO_S)
    return connection


def _introduce(
    connection: socket.socket, offer: Offer, worker: str, memory: int, doorbell: Doorbell
) -> tuple[Answer, int]:
    """The worker's answer and its doorbell."""
    try:
        socket.send_fds(connection, [_FD_MARK], [memory, doorbell.fd])
        send_frame(connection, {"worker": worker, **offer.to_json()})
        head, _ = recv_frame(connection)
        answer = read_answer(head)
        with _received(connection, 1) as (bell,):
            limit_stalls(connection, send_s=HELLO_S, receive_s=0)
            return answer, os.dup(bell)
    except (OSError, FrameError) as error:
        raise WorkerGone(f"the worker did not answer our hello: {error}") from error


@contextmanager
def _received(connection: socket.socket, count: int) -> Iterator[list[int]]:
    """Descriptors that the other side sends; closed at the end. Raises OSError."""
    _, descriptors, _, _ = socket.recv_fds(connection, len(_FD_MARK), count)
    try:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if len(descriptors) != count:
            raise ConnectionError(f"{count} descriptors wanted, {len(descriptors)} received")
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
