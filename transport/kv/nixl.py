"""Blocks through NIXL: RDMA where there is any, else what UCX finds. The wheel is optional.

Each side runs the library in a transport process of its own: NIXL cannot stop a read, so ending the
process is the fence, and an abort inside UCX cannot take a worker down.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from transport.kv.base import (
    BlockRead,
    KvLinkError,
    LinkUnusable,
    PeerGone,
    StaleBlock,
    TransferTimeout,
)
from transport.kv.endpoints import check_shapes, parse_endpoint
from transport.kv.frames import FrameError
from transport.kv.nixl_agent import REMEDY, library_present
from transport.kv.reads import read_table
from transport.kv.region import Region, RegionShape
from transport.kv.transport_process import FENCE_S, ProcessRole, TransportProcess

_log = logging.getLogger(__name__)
_FIELDS = {"metadata": str, "base": int, "block_bytes": int, "num_blocks": int}


class NixlLink:
    """Any two hosts that UCX can connect; UCX_* variables of the environment apply."""

    name = "nixl"

    def serve(self, region: Region) -> NixlSource:
        return NixlSource(region)

    def connect(self, endpoint: str, region: Region) -> NixlSession:
        peer = parse_endpoint(endpoint, _FIELDS)
        shape = RegionShape(peer["block_bytes"], peer["num_blocks"])
        check_shapes(shape, region.shape)
        with ExitStack() as undo:
            process, _ = _launch("home", region)
            undo.callback(process.close)
            path = process.ask({"peer": {name: peer[name] for name in _FIELDS}})["path"]
            undo.pop_all()
        return NixlSession(process, shape, region, path)


class NixlSource:
    """The pool, registered by a transport process that serves while we live."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._lock = threading.Lock()
        self._process, self._described = _launch("source", region)

    @property
    def endpoint(self) -> str:
        """Ask each time: a transport process that died is replaced, and has another address."""
        shape = self._region.shape
        with self._lock:
            if not self._process.running:
                _log.warning("the NIXL transport process of our pool died; starting another")
                self._process.close()
                self._process, self._described = _launch("source", self._region)
            described = self._described
        shapes = {"block_bytes": shape.block_bytes, "num_blocks": shape.num_blocks}
        return json.dumps({**described, **shapes})

    def close(self) -> None:
        with self._lock:
            self._process.close()


class NixlTransfer:
    """A read that the transport process does for us."""

    def __init__(self, session: NixlSession) -> None:
        self._session = session
        self._ended = threading.Event()
        self._error: KvLinkError | None = None

    def finish(self, error: KvLinkError | None) -> None:
        self._error = error
        self._ended.set()

    def wait(self, timeout_s: float) -> None:
        if not self._ended.wait(timeout_s):
            raise TransferTimeout(f"not complete after {timeout_s:g} s")
        if self._error is not None:
            raise self._error

    def fence(self) -> bool:
        if not self._ended.is_set():
            return self._session.end()
        if self._error is None or isinstance(self._error, StaleBlock):
            return True  # NIXL said DONE for all of it
        return self._session.end()


class NixlSession:
    """One transport process that reads from one peer. Reads run one after the other."""

    def __init__(
        self, process: TransportProcess, peer: RegionShape, region: Region, path: str
    ) -> None:
        self.path = path
        self._process = process
        self._peer = peer
        self._region = region
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._pending: dict[int, NixlTransfer] = {}
        self._alive = True
        process.wait_for_ever()
        self._listener = threading.Thread(target=self._listen, name="kv-nixl", daemon=True)
        self._listener.start()

    @property
    def alive(self) -> bool:
        return self._alive

    def start(self, reads: Sequence[BlockRead]) -> NixlTransfer:
        transfer = NixlTransfer(self)
        number = next(self._ids)
        try:
            table = read_table(reads, self._peer, self._region.shape)
            with self._lock:
                if not self._alive:
                    raise PeerGone("the transport process of this session ended")
                self._pending[number] = transfer
            self._process.send({"fetch": number}, table.tobytes())
        except KvLinkError as error:
            transfer.finish(error)
        except OSError as error:
            self._finish(number, PeerGone(f"the transport process ended: {error}"))
        return transfer

    def end(self) -> bool:
        """The fence of every transfer of this session."""
        self._alive = False
        return self._process.end()

    def close(self) -> None:
        self.end()
        self._listener.join(FENCE_S)
        self._process.close()

    def _listen(self) -> None:
        try:
            while True:
                head = self._process.receive()
                error = _error_of(head)
                self._alive = self._alive and not isinstance(error, PeerGone)
                self._finish(head["ended"], error)
        except (OSError, FrameError) as error:
            gone = PeerGone(f"the transport process ended: {error}")
            with self._lock:
                self._alive = False
                pending = list(self._pending)
            for number in pending:
                self._finish(number, gone)

    def _finish(self, number: int, error: KvLinkError | None) -> None:
        with self._lock:
            transfer = self._pending.pop(number, None)
        if transfer is not None:
            transfer.finish(error)


def _launch(role: ProcessRole, region: Region) -> tuple[TransportProcess, dict[str, Any]]:
    if not library_present():
        raise LinkUnusable(REMEDY)
    with ExitStack() as undo:
        process = TransportProcess(role, region)
        undo.callback(process.close)
        try:
            described = process.ask()
        except PeerGone as error:
            raise LinkUnusable(str(error)) from error
        undo.pop_all()
    return process, described


def _error_of(head: dict[str, Any]) -> KvLinkError | None:
    if "stale" in head:
        return StaleBlock(head["stale"])
    if "gone" in head:
        return PeerGone(head["gone"])
    return KvLinkError(head["failed"]) if "failed" in head else None
