"""Moves announced blocks into our pool: copy, verify, and the rungs of the ladder that stay within
a call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from transport.kv.base import (
    BlockRead,
    KvLinkError,
    KvSession,
    LinkUnusable,
    Transfer,
    WriterNotQuiet,
)
from transport.kv.digest import check_digests
from transport.kv.region import Region
from transport.protos import worker_pb2 as pb
from triptych.kv.layout import KvLayout
from triptych.kv.ledger import TransferLedger
from triptych.obs.metrics import WorkerMetrics
from triptych.worker.peers import Peer


@dataclass(frozen=True, slots=True)
class Fetched:
    """One announcement that is in our pool, verified."""

    path: str
    num_bytes: int
    began_at: float  # monotonic seconds
    ended_at: float


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches from any peer into this worker's pool."""

    region: Region
    layout: KvLayout
    hidden_size: int  # of the rows that come with a finished prompt
    ledger: TransferLedger
    metrics: WorkerMetrics

    async def fetch(
        self,
        peer: Peer,
        ready: pb.BlocksReady,
        targets: list[int],
        timeout_s: float,
        note: NoteRung,
    ) -> Fetched:
        """Copies `ready` into `targets`: same path once more, then the next path.

        Raises the last KvLinkError when every path failed. Whatever happens, no byte of a failed
        copy can land after this returned or raised.
        """
        rungs = list(ladder(await asyncio.to_thread(peer.links.usable)))
        if not rungs:
            reasons = peer.links.reasons()
            raise KvLinkError(f"no KV link to {peer.worker_id} works: {reasons}")
        while True:
            (_, name), *rungs = rungs
            try:
                return await self._fetch_over(peer, name, ready, targets, timeout_s)
            except KvLinkError as error:
                self.metrics.kv_transfer_failures.labels(name, type(error).__name__).inc()
                if isinstance(error, LinkUnusable):  # trying it again is no use
                    rungs = [rung for rung in rungs if rung[1] != name]
                if not rungs or isinstance(error, WriterNotQuiet):
                    raise
                note(rungs[0][0], f"{name}: {error}")

    async def _fetch_over(
        self, peer: Peer, name: str, ready: pb.BlocksReady, targets: list[int], timeout_s: float
    ) -> Fetched:
        session = await asyncio.to_thread(peer.links.session, name)
        self.metrics.set_kv_path(peer.worker_id, session.path)
        began = time.monotonic()
        await self._copy(session, ready, targets, timeout_s)
        ended = time.monotonic()
        num_bytes = len(targets) * self._span(ready)[1]
        self.metrics.kv_transfer_bytes.labels(name).inc(num_bytes)
        self.metrics.kv_transfer_seconds.labels(name).observe(ended - began)
        return Fetched(session.path, num_bytes, began, ended)

    async def _copy(
        self, session: KvSession, ready: pb.BlocksReady, targets: list[int], timeout_s: float
    ) -> None:
        offset, length = self._span(ready)
        reads = [
            BlockRead(source, generation, target, offset, length)
            for source, generation, target in zip(
                ready.blocks, ready.generations, targets, strict=True
            )
        ]
        lease = self.ledger.begin(targets)
        transfer: Transfer | None = None
        try:
            transfer = session.start(reads)
            await asyncio.to_thread(transfer.wait, timeout_s)
            await asyncio.to_thread(
                check_digests, self.region, targets, offset, length, ready.digests
            )
        except BaseException as error:
            # Off the event loop, for a fence may have to wait for a copy; it ends the lease even if
            # we are cancelled meanwhile.
            fence = transfer.fence if transfer is not None else _never_started
            quiet = await asyncio.shield(asyncio.to_thread(lease.abort, fence))
            if not quiet and not isinstance(error, asyncio.CancelledError):
                raise WriterNotQuiet(f"{session.path}: {error}") from error
            raise
        lease.commit()

    def _span(self, ready: pb.BlocksReady) -> tuple[int, int]:
        return self.layout.layer_span(ready.first_layer, ready.end_layer)


def _never_started() -> bool:
    return True


NoteRung = Callable[[str, str], None]  # (name of the rung, why it was needed)


def ladder(links: list[str]) -> Iterator[tuple[str, str]]:
    """(rung, link) in the order in which a fetch tries them. Pure."""
    for position, name in enumerate(links):
        yield ("next-path" if position else "first"), name
        if position == 0:
            yield "same-path", name
