"""A worker's KV pool, readable by other workers: what it tells of itself, over which links."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import TypeAlias

import grpc

from transport.kv.base import KvLinkError, KvSource, LinkUnusable
from transport.kv.links import make_links
from transport.kv.paths import takes
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import KvHolderServicer
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import EngineParts

log = logging.getLogger(__name__)

_ENDPOINT_S = 1.5  # peers wait five seconds for all of them

Context: TypeAlias = grpc.aio.ServicerContext[pb.DescribeRequest, pb.KvDescription]


class KvHolder(KvHolderServicer):
    """Serves the pool until `close`."""

    def __init__(
        self, args: WorkerArgs, parts: EngineParts, *, without: Collection[str] = ()
    ) -> None:
        """Raises LinkUnusable where the link that is required does not work here. `without`: links
        that are not served.
        """
        self._args = args
        self._layout_text = parts.layout_text
        self._sources = _serve(args, parts, without)

    @property
    def is_readable(self) -> bool:
        """Over one link at least that peers may use."""
        require = self._args.config.transport.require
        return any(require is None or takes(require, name) for name in self._sources)

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.KvDescription:
        """Asked anew by a peer that lost a path: an endpoint may have changed since."""
        return pb.KvDescription(
            worker_id=self._args.worker_id,
            epoch=self._args.epoch,
            layout=self._layout_text,
            links=await self._endpoints(),
        )

    async def _endpoints(self) -> list[pb.LinkEndpoint]:
        """Of the links that work now; one that has to be mended does not hold up the others."""
        found = []
        for name, source in self._sources.items():
            try:
                async with asyncio.timeout(_ENDPOINT_S):
                    text = await asyncio.to_thread(getattr, source, "endpoint")
            except (KvLinkError, TimeoutError) as error:
                log.warning("KV link %s cannot be offered: %s", name, error)
            else:
                found.append(pb.LinkEndpoint(link=name, endpoint=text))
        return found

    def close(self) -> None:
        for source in self._sources.values():
            source.close()


def _serve(args: WorkerArgs, parts: EngineParts, without: Collection[str]) -> dict[str, KvSource]:
    """Every configured link that works here; says which do not, and why."""
    transport = args.config.transport
    sources: dict[str, KvSource] = {}
    for link in make_links(transport.links, args.run_dir, host=args.kv_host):
        if link.name in without:
            continue
        try:
            sources[link.name] = link.serve(parts.region)
        except LinkUnusable as error:
            if transport.require is not None and takes(transport.require, link.name):
                raise
            log.warning("KV link %s is not served: %s", link.name, error)
    return sources
