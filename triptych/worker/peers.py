"""Workers whose KV pools this one reads, one entry per boot epoch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from transport.channel import connect
from transport.kv.base import KvLink, KvLinkError, LinkUnusable
from transport.kv.links import PeerLinks
from transport.kv.region import Region
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import KvHolderStub, PrefillWorkerStub

log = logging.getLogger(__name__)

_DESCRIBE_S = 5.0
_SHARE_FAILURE_S = 1.0
_FAREWELL_S = 5.0

PrefillStream = grpc.aio.StreamStreamCall[pb.PrefillCall, pb.PrefillEvent]


class PeerAddress(Protocol):
    """How messages name a worker."""

    @property
    def worker_id(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def address(self) -> str:
        """gRPC target."""


@dataclass(slots=True, eq=False)
class Peer:
    """A worker of one epoch and the paths into its pool. Its last user closes it."""

    worker_id: str
    epoch: int
    channel: grpc.aio.Channel
    links: PeerLinks
    users: int = 0
    retired: bool = False
    _ending: set[asyncio.Task[None]] = field(default_factory=set)

    def see_off(self, call: PrefillStream) -> None:
        """Lets a call that we half-closed end by itself; nobody waits for that."""
        task = asyncio.create_task(_until_ended(call))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    @property
    def prefill(self) -> PrefillWorkerStub:
        return PrefillWorkerStub(self.channel)


class PeerBook:
    """Opens peers on first use. A new epoch replaces the old one; nothing else has to restart."""

    def __init__(
        self, links: Sequence[KvLink], region: Region, layout_text: str, require: str | None
    ) -> None:
        self._links = links
        self._region = region
        self._layout_text = layout_text
        self._require = require
        self._peers: dict[str, Peer] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._failed: dict[str, tuple[float, KvLinkError | grpc.aio.AioRpcError]] = {}

    @contextlib.asynccontextmanager
    async def use(self, target: PeerAddress) -> AsyncIterator[Peer]:
        """The peer behind `target`, which stays open until the block ends, whoever retires it.

        Raises LinkUnusable (other layout, no link works) or grpc.aio.AioRpcError.
        """
        peer = await self._peer(target)
        peer.users += 1
        try:
            yield peer
        finally:
            peer.users -= 1
            if peer.retired and peer.users == 0:
                await _close(peer)

    async def retire(self, peer: Peer) -> None:
        """It is gone, or its paths are: the next use opens it anew; those who use it may go on."""
        if self._peers.get(peer.worker_id) is peer:
            del self._peers[peer.worker_id]
        if not peer.retired:
            peer.retired = True
            if peer.users == 0:
                await _close(peer)

    async def sweep(self) -> None:
        """Retires idle peers whose sessions broke: a dead worker's pool must not stay mapped."""
        for peer in list(self._peers.values()):
            if peer.users == 0 and peer.links.broken():
                await self.retire(peer)

    async def close(self) -> None:
        for peer in list(self._peers.values()):
            await self.retire(peer)

    async def _peer(self, target: PeerAddress) -> Peer:
        async with self._opening.setdefault(target.worker_id, asyncio.Lock()):
            known = self._peers.get(target.worker_id)
            if known is not None and known.epoch == target.epoch:
                return known
            failed_at, failure = self._failed.get(target.worker_id, (0.0, None))
            if failure is not None and time.monotonic() - failed_at < _SHARE_FAILURE_S:
                raise failure  # those who waited for the same attempt share its outcome
            try:
                peer = await self._open(target)
            except (KvLinkError, grpc.aio.AioRpcError) as error:
                self._failed[target.worker_id] = (time.monotonic(), error)
                raise
            self._failed.pop(target.worker_id, None)
            if known is not None and known.epoch == peer.epoch:  # `target` was out of date
                await _close(peer)
                return known
            if known is not None:
                await self.retire(known)
            self._peers[target.worker_id] = peer
            return peer

    async def _open(self, target: PeerAddress) -> Peer:
        channel = connect(target.address)
        try:
            holder = KvHolderStub(channel)
            description = await holder.Describe(pb.DescribeRequest(), timeout=_DESCRIBE_S)
            if description.layout != self._layout_text:
                raise LinkUnusable(
                    f"{target.worker_id} has another KV layout: {description.layout}, "
                    f"ours is {self._layout_text}"
                )
            if description.epoch != target.epoch:
                log.info("%s restarted since it was named", target.worker_id)
            endpoints = {item.link: item.endpoint for item in description.links}
            links = PeerLinks(self._links, endpoints, self._region, self._require)
            return Peer(target.worker_id, description.epoch, channel, links)
        except BaseException:
            await channel.close(None)
            raise


async def _close(peer: Peer) -> None:
    await asyncio.to_thread(peer.links.close)  # fences what is under way, joins threads
    await peer.channel.close(None)


async def _until_ended(call: PrefillStream) -> None:
    try:
        async with asyncio.timeout(_FAREWELL_S):
            await call.read()
    except (TimeoutError, grpc.aio.AioRpcError):
        call.cancel()
