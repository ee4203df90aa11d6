"""Blocks through shared memory: the home maps the source's pool read-only and copies.

The source hands its memfd to whoever connects to a unix socket in the run directory (mode 0600).
The socket stays open, so its end tells that the source is no more. A bug at home cannot harm the
source, and a fetch that began may finish after the source died: memory lives while it is mapped.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import numpy as np

from transport.kv.base import BlockRead, LinkUnusable, PeerGone, StaleBlock
from transport.kv.copying import CopyThreads, CopyTransfer, Interrupt
from transport.kv.endpoints import boot_id, check_shapes, parse_endpoint
from transport.kv.frames import FrameError, recv_frame, send_frame
from transport.kv.reads import (
    ReadTable,
    cut_runs,
    first_stale,
    lengths_of,
    merge_runs,
    positions,
    read_table,
)
from transport.kv.region import Region, probe_pattern
from transport.kv.serving import SocketServer
from transport.kv.sockets import limit_stalls
from transport.kv.unix_sockets import connect_to, listen_at, sweep_sockets

PIECE_BYTES = 8 << 20  # copied at once: bounds how long a fence takes (about 2 ms)
COPY_THREADS = 2  # of one session
HELLO_S = 5.0
MAX_HOMES = 256
_SOCKET = "kv-{}.sock"
_FD_MARK = b"\0"  # a descriptor needs at least one byte to travel with


class ShmLink:
    """Same host, same run directory."""

    name = "shm"

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def serve(self, region: Region) -> ShmSource:
        return ShmSource(region, self._run_dir)

    def connect(self, endpoint: str, region: Region) -> ShmSession:
        fields = parse_endpoint(endpoint, {"socket": str, "boot_id": str, "pool": str})
        if fields["boot_id"] != boot_id():
            raise LinkUnusable("the source runs on another host")
        with ExitStack() as undo:
            connection, peer = open_pool(Path(fields["socket"]), fields["pool"])
            undo.enter_context(connection)
            undo.enter_context(closing(peer))
            check_shapes(peer.shape, region.shape)
            if not np.array_equal(peer.probe, probe_pattern(peer.shape)):
                raise LinkUnusable("the probe page of the mapped pool has other bytes")
            undo.pop_all()
        return ShmSession(connection, peer, region)


class ShmSource:
    """Hands out the pool's descriptor; keeps each home's connection open as a sign of life."""

    def __init__(self, region: Region, run_dir: Path) -> None:
        self._region = region
        self._pool = secrets.token_hex(8)  # tells this pool from another behind the same path
        self._path = run_dir / _SOCKET.format(self._pool)
        try:
            sweep_sockets(run_dir)
            listener = listen_at(self._path)
        except OSError as error:
            raise LinkUnusable(f"cannot listen on {self._path}: {error}") from error
        self._server = SocketServer(
            listener, self._welcome, name="kv-shm", max_connections=MAX_HOMES
        )

    @property
    def endpoint(self) -> str:
        path = str(self._path.absolute())
        return json.dumps({"socket": path, "boot_id": boot_id(), "pool": self._pool})

    def close(self) -> None:
        self._server.close()
        self._path.unlink(missing_ok=True)

    def _welcome(self, connection: socket.socket) -> None:
        # Opened again for reading only: no home can map it writable by mistake.
        read_only = os.open(f"/proc/self/fd/{self._region.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            socket.send_fds(connection, [_FD_MARK], [read_only])
        finally:
            os.close(read_only)
        send_frame(connection, {"pool": self._pool})
        while connection.recv(4096):  # a home never speaks; this ends when it leaves
            pass


class ShmSession:
    """A peer's pool, mapped here."""

    path = "shm"

    def __init__(self, connection: socket.socket, peer: Region, region: Region) -> None:
        self._connection = connection
        self._peer = peer
        self._region = region
        self._threads = CopyThreads("kv-shm-copy", COPY_THREADS)
        self._closed = False

    @property
    def alive(self) -> bool:
        return not self._closed and is_open(self._connection)

    def start(self, reads: Sequence[BlockRead]) -> CopyTransfer:
        return self._threads.start(partial(self._copy, reads))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._threads.close()
            self._connection.close()
            self._peer.close()

    def _copy(self, reads: Sequence[BlockRead], interrupt: Interrupt) -> None:
        table = read_table(reads, self._peer.shape, self._region.shape)
        if not self.alive:
            raise PeerGone("the source closed its socket")
        self._check_generations(table)
        source = self._peer.blocks.reshape(-1)
        target = self._region.blocks.reshape(-1)
        for size, start, into in self._pieces(table):
            interrupt.check()
            target[into : into + size] = source[start : start + size]  # numpy drops the GIL for it
        # A source raises the generation before it writes. x86 keeps the order of stores and of
        # loads, so whoever copied a byte of the new owner sees the new generation here; a machine
        # with weaker ordering needs a barrier on both sides.
        self._check_generations(table)

    def _pieces(self, table: ReadTable) -> Iterable[tuple[int, int, int]]:
        """(size, byte there, byte here): neighbours on both sides joined, large runs cut."""
        runs = merge_runs(
            lengths_of(table),
            positions(table, "source", self._peer.shape),
            positions(table, "target", self._region.shape),
        )
        sizes, starts, targets = cut_runs(PIECE_BYTES, *runs)
        return zip(sizes.tolist(), starts.tolist(), targets.tolist(), strict=True)

    def _check_generations(self, table: ReadTable) -> None:
        stale = first_stale(table, self._peer.generations)
        if stale is not None:
            raise StaleBlock(f"block {table['source'][stale]} was handed out again")


def pools_in(run_dir: Path) -> dict[str, Path]:
    """Sockets of the pools that can be had here, by pool."""
    before, after = _SOCKET.split("{}")
    paths = run_dir.glob(_SOCKET.format("*"))
    return {path.name.removeprefix(before).removesuffix(after): path for path in paths}


def open_pool(path: Path, pool: str, *, populate: bool = True) -> tuple[socket.socket, Region]:
    """A source's pool, mapped, and the connection whose end tells that the source is no more.

    Raises PeerGone, or LinkUnusable.
    """
    with _reach(path) as connection:
        region = _receive_pool(connection, pool, populate)
        return connection.dup(), region


def is_open(connection: socket.socket) -> bool:
    """The source is still there."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _reach(path: Path) -> socket.socket:
    try:
        connection = connect_to(path)
    except ConnectionRefusedError as error:
        raise PeerGone(f"nobody listens on {path} any more") from error
    except OSError as error:
        raise LinkUnusable(f"cannot reach {path} from here: {error}") from error
    limit_stalls(connection, send_s=HELLO_S, receive_s=HELLO_S)
    return connection


def _receive_pool(connection: socket.socket, pool: str, populate: bool) -> Region:
    """Maps the descriptor that the source sends first."""
    with ExitStack() as undo:
        try:
            _, descriptors, _, _ = socket.recv_fds(connection, len(_FD_MARK), 1)
            for descriptor in descriptors:
                undo.callback(os.close, descriptor)
                os.set_inheritable(descriptor, False)
            head, _ = recv_frame(connection)
        except (OSError, FrameError) as error:
            raise PeerGone(f"the source did not hand over its pool: {error}") from error
        if head.get("pool") != pool or not descriptors:
            raise LinkUnusable("another pool answers behind the path of the source")
        try:
            region = Region.attach(descriptors[0], populate=populate)
        except (OSError, ValueError) as error:
            raise LinkUnusable(f"cannot map the source's pool: {error}") from error
        undo.pop_all()
    return region
