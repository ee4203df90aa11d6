"""A worker tells a router what its prefix cache holds, as it changes.

Whole caches and changes travel on one call, in order. What is lost all the same (a message, a
router, a worker that could not keep up) is made good by a snapshot of the present cache.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import NoReturn, Protocol, TypeAlias

import grpc
import grpc.aio

from transport.channel import connect
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import KvFeedStub
from transport.registry import back_off

SERVICE_NAME = "triptych.KvFeed"

_PART_BYTES = 8 * 16384  # of keys: a router puts a part into its index within some milliseconds
_LIMIT = 16384  # changes in one message
_BATCH_S = 0.025
_IDLE_S = 1.0  # without changes it still tells where it stands, so that a loss is noticed
_REFUSED_S = 30.0  # before a router that keeps no index is asked again

_PublishCall: TypeAlias = grpc.aio.StreamStreamCall[pb.KvEvents, pb.KvAsk]

_log = logging.getLogger(__name__)


class PrefixCache(Protocol):
    """What can be told of a cache. Keys are 8 bytes of a block's hash, one after the other."""

    def changes(self, position: int, limit: int) -> tuple[int, bytes, bytes] | None:
        """(end, stored, removed): what changes position … end came to; None: no longer known."""

    def snapshot(self) -> tuple[int, bytes]:
        """(end, keys): the whole cache as it was before change `end`."""


async def publish_cache(
    target: str, worker_id: str, epoch: int, cache: PrefixCache, *, batch_s: float = _BATCH_S
) -> NoReturn:
    """Keeps the router at `target` told of `cache`; cancelled to leave.

    When the call breaks, calls anew for ever, as `stay_attached` does, and begins with a snapshot.
    """
    clock = asyncio.get_running_loop().time
    delays = back_off()
    while True:
        began = clock()
        async with connect(target) as channel:
            call: _PublishCall = KvFeedStub(channel).Publish()
            try:
                await _Publisher(call, cache, batch_s).run(worker_id, epoch)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                # Whether the router is there at all is `stay_attached`'s to say, and to log.
                _log.debug("not publishing to %s: %s", target, error)
                if await call.code() is grpc.StatusCode.UNIMPLEMENTED:
                    await asyncio.sleep(_REFUSED_S)
        if clock() - began > _IDLE_S:
            delays = back_off()
        await asyncio.sleep(next(delays))


class _Publisher:
    """One call."""

    def __init__(self, call: _PublishCall, cache: PrefixCache, batch_s: float) -> None:
        self._call = call
        self._cache = cache
        self._batch_s = batch_s
        self._position = 0  # changes told
        self._asked = True

    async def run(self, worker_id: str, epoch: int) -> None:
        """Until the call ends; raises its status."""
        await self._call.write(pb.KvEvents(worker_id=worker_id, epoch=epoch))
        reading = asyncio.create_task(self._hear())
        try:
            idle_s = 0.0
            while not reading.done():
                told = await self._tell()
                idle_s = 0.0 if told else idle_s + self._batch_s
                if idle_s >= _IDLE_S:
                    idle_s = 0.0
                    await self._write(pb.KvEvents())
                # Not woken by changes: those of one batch come in one message anyway, and the
                # engine's thread has other things to do than to wake this loop.
                await asyncio.wait({reading}, timeout=self._batch_s)
            await reading
        finally:
            reading.cancel()
            await asyncio.wait({reading})

    async def _hear(self) -> None:
        while isinstance(ask := await self._call.read(), pb.KvAsk):
            self._asked = self._asked or ask.snapshot

    async def _tell(self) -> bool:
        """What is new; whether there was something."""
        told = False
        while True:
            changes = None if self._asked else self._cache.changes(self._position, _LIMIT)
            if changes is None:
                self._asked = False
                await self._tell_all()
            else:
                end, stored, removed = changes
                if end == self._position:
                    return told
                await self._write(pb.KvEvents(end=end, stored=stored, removed=removed))
                self._position = end
            told = True

    async def _tell_all(self) -> None:
        self._position, keys = self._cache.snapshot()
        for message in snapshot_parts(self._position, keys):
            await self._call.write(message)

    async def _write(self, message: pb.KvEvents) -> None:
        message.first = self._position
        message.end = max(message.end, self._position)
        await self._call.write(message)


def snapshot_parts(end: int, keys: bytes, part_bytes: int = _PART_BYTES) -> Iterator[pb.KvEvents]:
    """The messages of a snapshot; one at least."""
    count = max(1, -(-len(keys) // part_bytes))
    for index in range(count):
        part = keys[index * part_bytes : (index + 1) * part_bytes]
        yield pb.KvEvents(first=end, end=end, stored=part, part=pb.KvPart(index=index, count=count))
