"""How a prompt comes to its first row: at once, or behind KV that its home lends.

A later turn of a conversation begins with what its home holds already, answers included, and this
worker may hold none of it. What the home offers is fetched where that is sooner than computing it;
whatever fails, the prompt is computed from where it stands.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import grpc

from prefill_worker.fetch_or_compute import FetchOrCompute
from prefill_worker.loop import PrefillLoop
from transport.kv.base import KvLinkError, WriterNotQuiet
from transport.protos import worker_pb2 as pb
from triptych.engine.sequence import Sequence
from triptych.engine.thread import StepThread
from triptych.kv.pool import BlockPool
from triptych.models.taps import StatesWanted
from triptych.worker.fetch import Fetcher
from triptych.worker.peers import PeerBook
from triptych.worker.room import wait_for_room

log = logging.getLogger(__name__)

_FETCH_S = 10.0


@dataclass(frozen=True, slots=True)
class Intake:
    """Runs on the event loop; the loop's thread does what it posts."""

    pool: BlockPool
    homes: PeerBook
    fetcher: Fetcher
    loop: PrefillLoop
    thread: StepThread
    choice: FetchOrCompute

    async def admit(self, sequence: Sequence, wanted: StatesWanted, history: pb.KvHistory) -> None:
        """Cancelled: every fetch is fenced; the blocks stay with the sequence until `remove`."""
        if not self._worth_fetching(sequence, history):
            self.thread.post(partial(self.loop.submit, sequence, wanted))
            return
        await wait_for_room(sequence, self.thread, partial(self.loop.submit, sequence, wanted))
        try:
            num_tokens = await self._fetch(sequence, history)
        except WriterNotQuiet as error:
            log.warning("history of %s: %s", history.worker_id, error)
            self.thread.post(partial(self.loop.restart, sequence))
            return
        self.thread.post(partial(self.loop.arrive, sequence, num_tokens))

    def remove(self, sequence: Sequence) -> None:
        """Wherever it is; its blocks go back."""
        self.thread.post(partial(self.loop.remove, sequence))

    def _worth_fetching(self, sequence: Sequence, history: pb.KvHistory) -> bool:
        here = self.pool.count_cached(sequence.reusable_hashes())
        missing = len(history.blocks) - here
        size = self.fetcher.layout.block_bytes
        return self.choice.is_worth_fetching(
            here * sequence.block_tokens,
            len(history.blocks) * sequence.block_tokens,
            missing * size,
        )

    async def _fetch(self, sequence: Sequence, history: pb.KvHistory) -> int:
        """Tokens whose KV is here then: those that were cached at least. Raises WriterNotQuiet."""
        first, end = sequence.num_computed // sequence.block_tokens, len(history.blocks)
        if first >= end:
            return sequence.num_computed
        ready = pb.BlocksReady(
            first_block=first,
            blocks=history.blocks[first:],
            generations=history.generations[first:],
            first_layer=0,
            end_layer=self.fetcher.layout.num_layers,
            digests=history.digests[first:],
        )
        try:
            async with self.homes.use(history) as peer:
                targets = sequence.blocks[first:end]
                await self.fetcher.fetch(peer, ready, targets, _FETCH_S, self._note)
        except WriterNotQuiet:
            raise
        except (KvLinkError, grpc.aio.AioRpcError) as error:
            self._note("compute", f"{history.worker_id}: {error}")
            return sequence.num_computed
        return end * sequence.block_tokens

    def _note(self, step: str, why: str) -> None:
        self.fetcher.metrics.kv_fallbacks.labels(step).inc()
        log.warning("KV fallback to %s: %s", step, why)
