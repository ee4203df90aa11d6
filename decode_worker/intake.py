"""How a request gets its prompt's KV: reserve, then ask a prefill worker or compute here.

The reservation is made once and survives every rung of the ladder: same path, next path, next
prefill worker, home. Whatever fails, the request goes on; only a deadline or the client ends it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import grpc

from decode_worker.history import Lender
from decode_worker.loop import DecodeLoop
from decode_worker.remote import Delivery, RemotePrefill, prefill_request
from decode_worker.request import HomeRequest
from transport.kv.base import KvLinkError, PeerGone, WriterNotQuiet
from triptych.config import TransportConfig
from triptych.engine.thread import StepThread
from triptych.kv.pool import BlockPool
from triptych.worker.fetch import Fetcher
from triptych.worker.peers import Peer, PeerBook
from triptych.worker.room import wait_for_room
from triptych.worker.salvage import Salvager

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
    lender: Lender
    salvager: Salvager

    async def admit(self, home: HomeRequest) -> None:
        """Brings the prompt's KV home and the request into the running set.

        Cancelled: every fetch is fenced; the blocks stay with the sequence, whose owner releases
        them.
        """
        if home.request.resumed and (blocks := await self.salvager.salvage(home.sequences)):
            log.info("KV of another home found", extra={"fields": {"blocks": blocks}})
        for sibling in home.sequences[1:]:
            self.thread.post(partial(self.loop.submit, sibling))
        leader = home.leader
        if not self._worth_asking(home):
            self.thread.post(partial(self.loop.submit, leader))
            return
        await wait_for_room(leader, self.thread, partial(self.loop.submit, leader))
        try:
            delivery = await self._ask_in_turn(home)
        except WriterNotQuiet as error:
            self._note(home, "home", f"with other blocks: {error}")
            self.thread.post(partial(self.loop.restart, leader))
            return
        if delivery is None:
            self.thread.post(partial(self.loop.submit, leader))
        else:
            self.thread.post(partial(self.loop.arrive, leader, *delivery))

    def _worth_asking(self, home: HomeRequest) -> bool:
        cached = self.pool.count_cached(home.leader.reusable_hashes())
        return wants_remote(
            num_tokens=home.leader.num_given,
            num_cached=cached * home.leader.block_tokens,
            num_targets=len(home.prefill_targets),
            min_remote_tokens=self.config.min_remote_tokens,
        )

    async def _ask_in_turn(self, home: HomeRequest) -> Delivery | None:
        """From the first prefill worker that delivers; None: prefill here."""
        targets = home.prefill_targets
        for attempt, target in enumerate(targets, start=1):
            try:
                async with self.peers.use(target) as peer:
                    return await self._ask(home, peer, attempt)
            except WriterNotQuiet:
                raise
            except (KvLinkError, grpc.aio.AioRpcError) as error:
                why = _reason(error)
            except Exception as error:
                # A request outlives whatever goes wrong with a helper; but this was not foreseen.
                log.exception("prefill at %s failed", target.worker_id)
                why = repr(error)
            step = "other-worker" if attempt < len(targets) else "home"
            self._note(home, step, f"{target.worker_id}: {why}")
        return None

    async def _ask(self, home: HomeRequest, peer: Peer, attempt: int) -> Delivery:
        leader = home.leader
        first_block = leader.num_computed // leader.block_tokens
        request = prefill_request(
            leader.request_id,
            attempt,
            leader.tokens,
            first_block,
            home.request.cache_salt,
            self.loop.states_read(leader),
            await self.lender.offer(leader.blocks[:first_block]),
            leader.sparse,
            leader.num_output,
        )
        remote = RemotePrefill(self.fetcher, peer, leader, request)
        try:
            delivery = await remote.run(
                min(self.config.prefill_deadline_s, home.time_left_s),
                partial(self._note, home),
            )
        except (PeerGone, grpc.aio.AioRpcError) as error:
            if _is_gone(error):
                await self.peers.retire(peer)
            raise
        home.remote = remote.stats
        home.remote.queue_ms += (remote.began_at - home.arrived_at) * 1e3
        return delivery

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


def _is_gone(error: PeerGone | grpc.aio.AioRpcError) -> bool:
    """A worker that refuses or is slow is still there; others may be served by it right now."""
    return isinstance(error, PeerGone) or error.code() is grpc.StatusCode.UNAVAILABLE


def _reason(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"
