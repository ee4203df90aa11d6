"""Workers publish their caches to this router: the service behind `publish_cache`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import grpc.aio

from router.index.follower import Follower
from router.index.kv_index import KvIndex
from router.index.metrics import IndexMetrics
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import KvFeedServicer
from transport.replaced import Replaced

_SILENCE_S = 5.0  # workers speak once a second at least
_SILENCE = f"nothing told for {_SILENCE_S:g} s"

_Context = grpc.aio.ServicerContext[pb.KvEvents, pb.KvAsk]

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Call:
    """A worker's open Publish call."""

    worker_id: str
    epoch: int
    follower: Follower
    doubted: bool = False  # what it told seems to be wrong
    dismissal: str | None = None  # why the router ends it
    patience: asyncio.Timeout | None = None  # runs out when nothing comes

    def dismiss(self, reason: str) -> None:
        self.dismissal = reason
        if self.patience is not None and not self.patience.expired():
            self.patience.reschedule(asyncio.get_running_loop().time())


class KvFeed(KvFeedServicer):
    """One call per worker; a later one replaces it. Lives on one event loop."""

    def __init__(self, index: KvIndex, metrics: IndexMetrics) -> None:
        self._index = index
        self._metrics = metrics
        self._calls: dict[str, _Call] = {}  # by worker id
        self._replaced = Replaced()
        metrics.watch(lambda: [(name, index.num_blocks(name)) for name in self._calls])

    def ask_snapshot(self, worker_id: str) -> None:
        """With the worker's next message, a second from now at most."""
        call = self._calls.get(worker_id)
        if call is not None:
            call.doubted = True

    def close(self) -> None:
        """Ends every call, so that a stopping router need not wait for its workers."""
        for call in self._calls.values():
            call.dismiss("router is stopping")

    async def Publish(self, messages: AsyncIterator[pb.KvEvents], context: _Context) -> None:
        call = self._join(await self._hello(messages, context))
        try:
            await self._follow(call, messages, context)
        finally:
            self._leave(call)
        if call.dismissal:
            await context.abort(grpc.StatusCode.ABORTED, call.dismissal)

    async def _hello(self, messages: AsyncIterator[pb.KvEvents], context: _Context) -> pb.KvEvents:
        try:
            async with asyncio.timeout(_SILENCE_S):
                hello = await anext(messages, pb.KvEvents())
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, _SILENCE)
        if not hello.worker_id:
            problem = "worker_id: missing; the first message must introduce the worker"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        if (hello.worker_id, hello.epoch) in self._replaced:
            problem = f"{hello.worker_id}: a newer process has taken this worker id"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, problem)
        return hello

    def _join(self, hello: pb.KvEvents) -> _Call:
        old = self._calls.get(hello.worker_id)
        if old is not None:
            old.follower.close()
            old.dismiss("called again")
            if old.epoch != hello.epoch:
                self._replaced.add(old.worker_id, old.epoch)
        follower = Follower(self._index, hello.worker_id, self._metrics)
        call = self._calls[hello.worker_id] = _Call(hello.worker_id, hello.epoch, follower)
        return call

    def _leave(self, call: _Call) -> None:
        if self._calls.get(call.worker_id) is call:  # else another call speaks for this worker now
            call.follower.close()
            del self._calls[call.worker_id]

    async def _follow(
        self, call: _Call, messages: AsyncIterator[pb.KvEvents], context: _Context
    ) -> None:
        """Until the worker hangs up, falls silent or is dismissed."""
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(_SILENCE_S) as call.patience:
                async for events in messages:
                    if call.dismissal:
                        return
                    call.patience.reschedule(clock() + _SILENCE_S)
                    wanted = call.follower.take(events)
                    doubted, call.doubted = call.doubted, False
                    if wanted or (doubted and call.follower.doubt()):
                        fields = {"worker": call.worker_id, "epoch": f"{call.epoch:x}"}
                        _log.info("asking for a KV snapshot", extra={"fields": fields})
                        await context.write(pb.KvAsk(snapshot=True))
        except TimeoutError:
            call.dismissal = call.dismissal or _SILENCE
