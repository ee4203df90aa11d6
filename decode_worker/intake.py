"""How a request gets its prompt's KV: reserve, then ask a prefill worker or compute here.

The reservation is made once and survives every rung of the ladder: same path, next path, next
prefill worker, home. Whatever fails, the request goes on; only a deadline or the client ends it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial

import grpc
from torch import Tensor

from decode_worker.fetch import Fetcher
from decode_worker.loop import DecodeLoop
from decode_worker.peers import PeerBook
from decode_worker.remote import RemotePrefill, prefill_request
from decode_worker.request import HomeRequest
from transport.kv.base import KvLinkError, PeerGone
from transport.protos import worker_pb2 as pb
from triptych.config import TransportConfig
from triptych.engine.thread import StepThread
from triptych.kv.pool import BlockPool

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Intake:
    """Runs on the event loop; hands sequences to the engine's thread when their KV is there."""

    pool: BlockPool
    peers: PeerBook
    fetcher: Fetcher
    loop: DecodeLoop
    thread: StepThread
    config: TransportConfig
    room: asyncio.Event  # set whenever blocks came back

    async def admit(self, home: HomeRequest) -> None:
        """Brings the prompt's KV home and the request into the running set.

        Cancelled: every fetch is fenced; the blocks stay with the sequence, whose owner releases
        them.
        """
        for sibling in home.sequences[1:]:
            self.thread.post(partial(self.loop.submit, sibling))
        leader = home.leader
        hidden = None
        if self._worth_asking(home):
            await self._reserve(home)
            hidden = await self._ask_in_turn(home)
        if hidden is None:
            self.thread.post(partial(self.loop.submit, leader))
        else:
            self.thread.post(partial(self.loop.arrive, leader, hidden))

    def _worth_asking(self, home: HomeRequest) -> bool:
        cached = self.pool.count_cached(home.leader.reusable_hashes())
        return wants_remote(
            num_tokens=home.leader.num_prompt,
            num_cached=cached * home.leader.block_tokens,
            num_targets=len(home.prefill_targets),
            min_remote_tokens=self.config.min_remote_tokens,
        )

    async def _reserve(self, home: HomeRequest) -> None:
        """All blocks of the prompt, waiting for room; those who wait in the scheduler go first."""
        leader = home.leader
        count = self.fetcher.layout.blocks_for(leader.num_prompt)
        while True:
            self.room.clear()
            if self.loop.scheduler.num_starved == 0:
                reservation = self.pool.reserve(leader.reusable_hashes(), count)
                if reservation is not None:
                    break
            await self.room.wait()
        leader.blocks = reservation.blocks
        leader.num_committed = reservation.num_cached
        leader.num_cached = reservation.num_cached * leader.block_tokens
        leader.num_computed = leader.num_cached

    async def _ask_in_turn(self, home: HomeRequest) -> Tensor | None:
        """The last hidden row from the first prefill worker that delivers; None: prefill here."""
        targets = home.prefill_targets
        for attempt, target in enumerate(targets, start=1):
            try:
                return await self._ask(home, target, attempt)
            except (KvLinkError, grpc.aio.AioRpcError) as error:
                step = "other-worker" if attempt < len(targets) else "home"
                self._note(home, step, f"{target.worker_id}: {_reason(error)}")
        return None

    async def _ask(self, home: HomeRequest, target: pb.PrefillTarget, attempt: int) -> Tensor:
        peer = await self.peers.peer(target)
        leader = home.leader
        request = prefill_request(
            leader.request_id,
            attempt,
            home.request.prompt_ids,
            leader.num_computed // leader.block_tokens,
            home.request.cache_salt,
        )
        remote = RemotePrefill(self.fetcher, peer, leader, request)
        try:
            hidden = await remote.run(
                min(self.config.prefill_deadline_s, home.time_left_s),
                lambda step, why: self._note(home, step, why),
            )
        except (PeerGone, grpc.aio.AioRpcError):
            await self.peers.drop(peer)
            raise
        home.remote = remote.stats
        home.remote.queue_ms += (remote.began_at - home.arrived_at) * 1e3
        return hidden

    def _note(self, home: HomeRequest, step: str, why: str) -> None:
        """A fallback is logged, counted and told to the client's timings."""
        home.fallbacks.append(f"{step}: {why}")
        self.fetcher.metrics.kv_fallbacks.labels(step).inc()
        log.warning("KV fallback to %s: %s", step, why)


def wants_remote(
    *, num_tokens: int, num_cached: int, num_targets: int, min_remote_tokens: int
) -> bool:
    """Whether enough of a prompt is missing here, and there is somebody to ask. Pure."""
    return num_targets > 0 and num_tokens - num_cached >= min_remote_tokens


def _reason(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"
