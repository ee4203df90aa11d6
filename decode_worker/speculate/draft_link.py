"""The call to a draft worker, kept open: whatever ends it, it is opened again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence as Seq
from typing import Protocol

import grpc

from transport.channel import connect
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import DraftWorkerStub
from transport.registry import back_off
from triptych.obs.speculation import SpeculationMetrics

log = logging.getLogger(__name__)

_GREETING_S = 5.0  # what a draft worker may take for its welcome, connecting included
_REFUSED_S = 30.0  # until one that refused us is asked again: it may have been replaced

Stream = grpc.aio.StreamStreamCall[pb.DraftCall, pb.DraftReplies]
_REFUSALS = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED)


class Listener(Protocol):
    """Called on the event loop; must not raise."""

    def on_replies(self, replies: pb.DraftReplies) -> None: ...

    def on_lost(self) -> None:
        """The call ended; nothing that was asked on it will be answered."""


class Link(Protocol):
    """What a remote drafter needs of its connection. All of it may be used from any thread."""

    @property
    def session(self) -> int:
        """Number of the open call, from 1; another one knows nothing. 0: there is none."""

    def send(self, session: int, call: pb.DraftCall) -> None:
        """Lost if that call is over."""


class DraftLink:
    """Tries `addresses` in turn, with back-off. `start` and `close` belong to the event loop."""

    def __init__(
        self, addresses: Seq[str], hello: pb.DraftHello, name: str, metrics: SpeculationMetrics
    ) -> None:
        assert addresses, "a remote drafter has an address"
        self._addresses = addresses
        self._hello = hello
        self._name = name
        self._refusals = metrics.remote_refused.labels(name)
        self._connected = metrics.remote_connected.labels(name)
        self._session = 0
        self._last_session = 0
        self._complained = False
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._outbox: asyncio.Queue[tuple[int, pb.DraftCall]] = asyncio.Queue()

    @property
    def session(self) -> int:
        return self._session

    def send(self, session: int, call: pb.DraftCall) -> None:
        if self._event_loop is not None and session:
            self._event_loop.call_soon_threadsafe(self._outbox.put_nowait, (session, call))

    def start(self, listener: Listener) -> None:
        self._event_loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._keep_open(listener))

    async def close(self) -> None:
        self._event_loop = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _keep_open(self, listener: Listener) -> None:
        delays, turn = back_off(), 0
        while True:
            address = self._addresses[turn % len(self._addresses)]
            turn += 1
            last = self._last_session
            delay = 0.0
            try:
                async with connect(address) as channel:
                    await self._converse(DraftWorkerStub(channel).Draft(), address, listener)
            except (grpc.aio.AioRpcError, TimeoutError, ConnectionError) as error:
                if isinstance(error, grpc.aio.AioRpcError) and error.code() in _REFUSALS:
                    self._report_refusal(address, error)
                    delay = _REFUSED_S
                else:
                    self._report_loss(address, error)
            if self._last_session != last:
                delays = back_off()
            await asyncio.sleep(max(delay, next(delays)))

    async def _converse(self, call: Stream, address: str, listener: Listener) -> None:
        """Until the call ends; raises its status."""
        welcome = await self._greet(call)
        self._last_session += 1
        fields = {"drafter": welcome.drafter, "config": welcome.config_hash, "address": address}
        log.info("remote drafter answers", extra={"fields": fields})
        self._complained = False
        writing = asyncio.create_task(self._write(call, self._last_session))
        self._session = self._last_session
        self._connected.set(1)
        try:
            while isinstance(replies := await call.read(), pb.DraftReplies):
                listener.on_replies(replies)
            raise ConnectionError("the draft worker ended the call")
        finally:
            self._session = 0
            self._connected.set(0)
            listener.on_lost()
            writing.cancel()
            call.cancel()

    async def _greet(self, call: Stream) -> pb.DraftWelcome:
        try:
            async with asyncio.timeout(_GREETING_S):
                await call.write(pb.DraftCall(hello=self._hello))
                reply = await call.read()
        except TimeoutError:
            raise TimeoutError(f"no answer within {_GREETING_S:g} s") from None
        except asyncio.InvalidStateError:  # the call ended before the greeting was written
            reply = await call.read()
        if not isinstance(reply, pb.DraftReplies):
            await call.code()
            raise ConnectionError("the draft worker hung up")
        return reply.welcome

    async def _write(self, call: Stream, session: int) -> None:
        while True:
            wanted, message = await self._outbox.get()
            if wanted == session:
                await call.write(message)

    def _report_refusal(self, address: str, error: grpc.aio.AioRpcError) -> None:
        self._refusals.inc()
        log.error(
            "drafter %s at %s refuses: %s; decoding is plain without it. Give decode and draft "
            "workers the same model and name one of its drafters",
            self._name,
            address,
            error.details(),
        )

    def _report_loss(self, address: str, error: Exception) -> None:
        """Once, however long it lasts."""
        if not self._complained:
            reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
            log.warning("drafter %s at %s is away: %s", self._name, address, reason)
            self._complained = True
