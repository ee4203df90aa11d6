"""The prefill workers that this home has talked to, one entry per boot epoch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from transport.channel import connect
from transport.kv.base import KvLink, LinkUnusable
from transport.kv.links import PeerLinks
from transport.kv.region import Region
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import PrefillWorkerStub

log = logging.getLogger(__name__)

_DESCRIBE_S = 5.0
_FAREWELL_S = 5.0

PrefillStream = grpc.aio.StreamStreamCall[pb.PrefillCall, pb.PrefillEvent]


@dataclass(slots=True, eq=False)
class Peer:
    """A prefill worker of one epoch, with proven paths into its pool."""

    worker_id: str
    epoch: int
    channel: grpc.aio.Channel
    links: PeerLinks
    _ending: set[asyncio.Task[None]] = field(default_factory=set)

    def see_off(self, call: PrefillStream) -> None:
        """Lets a call that we half-closed end by itself; nobody waits for that."""
        task = asyncio.create_task(_until_ended(call))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    @property
    def stub(self) -> PrefillWorkerStub:
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

    async def peer(self, target: pb.PrefillTarget) -> Peer:
        """Raises LinkUnusable (other layout, no link works) or grpc.aio.AioRpcError."""
        async with self._opening.setdefault(target.worker_id, asyncio.Lock()):
            known = self._peers.get(target.worker_id)
            if known is not None and known.epoch == target.epoch:
                return known
            if known is not None:
                await self._forget(known)
            peer = await self._open(target)
            self._peers[target.worker_id] = peer
            return peer

    async def drop(self, peer: Peer) -> None:
        """After a failure that says the peer is gone: the next use opens it anew."""
        if self._peers.get(peer.worker_id) is peer:
            await self._forget(peer)

    async def close(self) -> None:
        for peer in list(self._peers.values()):
            await self._forget(peer)

    async def _open(self, target: pb.PrefillTarget) -> Peer:
        channel = connect(target.address)
        try:
            stub = PrefillWorkerStub(channel)
            description = await stub.Describe(pb.DescribeRequest(), timeout=_DESCRIBE_S)
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

    async def _forget(self, peer: Peer) -> None:
        del self._peers[peer.worker_id]
        peer.links.close()
        await peer.channel.close(None)


async def _until_ended(call: PrefillStream) -> None:
    try:
        async with asyncio.timeout(_FAREWELL_S):
            await call.read()
    except (TimeoutError, grpc.aio.AioRpcError):
        call.cancel()
