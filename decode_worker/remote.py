"""One prompt prefilled by another worker: opens the call, fetches what is announced, ends the
lease.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

import torch
from torch import Tensor

from decode_worker.request import RemoteStats
from transport.kv.base import KvLinkError, PeerGone
from transport.protos import worker_pb2 as pb
from triptych.engine.sequence import Sequence
from triptych.models.taps import StatesWanted
from triptych.obs.trace import traceparent
from triptych.request import SparseAttention
from triptych.wire import sparse_message, tiles_of
from triptych.worker.fetch import Fetched, Fetcher, NoteRung
from triptych.worker.peers import Peer, PrefillStream


class Delivery(NamedTuple):
    """What comes with a prompt besides its KV."""

    last_hidden: Tensor  # float32 [H], final-norm output of the last row
    states: Tensor | None  # bfloat16 [m, layers · H] of the last m rows, if they were asked for


class RemotePrefill:
    """One attempt at one peer. Fetches overlap with the chunks that the peer still computes."""

    def __init__(
        self, fetcher: Fetcher, peer: Peer, sequence: Sequence, request: pb.PrefillRequest
    ) -> None:
        self._fetcher = fetcher
        self._peer = peer
        self._sequence = sequence
        self._request = request
        self.began_at = time.monotonic()
        self._fetched: list[Fetched] = []
        self._covered: dict[int, set[int]] = {}  # block index → layers that are here
        self._states = bytearray()  # as far as they came
        self._ends_at = 0.0  # monotonic seconds
        self.stats = RemoteStats(worker=peer.worker_id)

    async def run(self, timeout_s: float, note: NoteRung) -> Delivery:
        """Every block of the prompt is then in our pool, verified.

        Raises KvLinkError or grpc.aio.AioRpcError; by then no fetch is under way any more.
        """
        self._ends_at = time.monotonic() + timeout_s
        call = self._peer.prefill.Prefill(timeout=timeout_s)
        try:
            await call.write(pb.PrefillCall(open=self._request))
            done, done_at = await self._follow_and_fetch(call, note)
            self._check_complete()
            delivery = Delivery(self._hidden_row(done), self._state_rows())
            await call.done_writing()  # we have everything: the lease may end
        except BaseException:
            call.cancel()
            raise
        self._peer.see_off(call)
        self._finish_stats(done, done_at)
        return delivery

    async def _follow_and_fetch(
        self, call: PrefillStream, note: NoteRung
    ) -> tuple[pb.PrefillDone, float]:
        """The prefill's end and when it came; all fetches are done. Raises the first failure."""
        fetches: list[asyncio.Task[None]] = []
        follow = asyncio.create_task(self._follow(call, fetches, note))
        try:
            while open_tasks := [task for task in (follow, *fetches) if not task.done()]:
                finished, _ = await asyncio.wait(open_tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    _raise_failure(task, self._peer.worker_id)
            return follow.result()
        finally:
            for task in (follow, *fetches):
                task.cancel()
            await asyncio.wait([follow, *fetches])

    async def _follow(
        self, call: PrefillStream, fetches: list[asyncio.Task[None]], note: NoteRung
    ) -> tuple[pb.PrefillDone, float]:
        """Starts a fetch for every announcement, while the peer computes the next one."""
        while True:
            event = await call.read()
            if not isinstance(event, pb.PrefillEvent):
                raise KvLinkError(f"{self._peer.worker_id} hung up before the prompt was done")
            match event.WhichOneof("event"):
                case "started":
                    self.stats.queue_ms = event.started.queue_ms
                    self.stats.cached_tokens = event.started.cached_tokens
                case "blocks":
                    fetches.append(asyncio.create_task(self._fetch(event.blocks, note)))
                case "states":
                    self._states += event.states.rows
                case "done":
                    return event.done, time.monotonic()

    async def _fetch(self, ready: pb.BlocksReady, note: NoteRung) -> None:
        end = ready.first_block + len(ready.blocks)
        targets = self._sequence.blocks[ready.first_block : end]
        if len(targets) != len(ready.blocks) or ready.first_block < self._request.first_block:
            raise KvLinkError(f"{self._peer.worker_id} announced blocks that nobody asked for")
        time_left_s = max(0.0, self._ends_at - time.monotonic())
        fetched = await self._fetcher.fetch(self._peer, ready, targets, time_left_s, note)
        self._fetched.append(fetched)
        for index in range(ready.first_block, end):
            self._covered.setdefault(index, set()).update(range(ready.first_layer, ready.end_layer))

    def _check_complete(self) -> None:
        wanted = range(self._request.first_block, len(self._sequence.blocks))
        layers = self._fetcher.layout.num_layers
        missing = [index for index in wanted if len(self._covered.get(index, ())) != layers]
        if missing:
            raise KvLinkError(f"{self._peer.worker_id} never announced blocks {missing}")

    def _hidden_row(self, done: pb.PrefillDone) -> Tensor:
        if len(done.last_hidden) != self._fetcher.hidden_size * torch.float32.itemsize:
            raise KvLinkError(f"{self._peer.worker_id} sent a hidden row of another size")
        return torch.frombuffer(bytearray(done.last_hidden), dtype=torch.float32)

    def _state_rows(self) -> Tensor | None:
        if not self._states:
            return None
        width = len(self._request.state_layers) * self._fetcher.hidden_size
        size = width * torch.bfloat16.itemsize
        if not size or len(self._states) % size or len(self._states) // size > self._most_rows():
            raise KvLinkError(f"{self._peer.worker_id} sent hidden states that nobody asked for")
        return torch.frombuffer(self._states, dtype=torch.bfloat16).view(-1, width)

    def _most_rows(self) -> int:
        return min(self._request.state_rows, len(self._request.prompt_ids))

    def _finish_stats(self, done: pb.PrefillDone, done_at: float) -> None:
        now = time.monotonic()
        self.stats.compute_ms = done.compute_ms
        self.stats.tiles = tiles_of(done.tiles)
        self.stats.path = self._fetched[-1].path if self._fetched else ""
        self.stats.kv_bytes = sum(item.num_bytes for item in self._fetched)
        self.stats.fetch_ms = sum(item.ended_at - item.began_at for item in self._fetched) * 1e3
        hidden = sum(max(0.0, min(i.ended_at, done_at) - i.began_at) for i in self._fetched)
        self.stats.hidden_ms = hidden * 1e3
        self.stats.transfer_ms = (now - done_at) * 1e3


def _raise_failure(task: asyncio.Task[Any], worker_id: str) -> None:
    """What the task raised. Nobody but the channel's end can have cancelled it."""
    if task.cancelled():
        raise PeerGone(f"the connection to {worker_id} was closed")
    task.result()


def prefill_request(
    request_id: str,
    attempt: int,
    prompt_ids: Seq[int],
    first_block: int,
    salt: str,
    states: StatesWanted,
    history: pb.KvHistory | None,
    sparse: SparseAttention | None,
    answer_tokens: int,
) -> pb.PrefillRequest:
    """`states`: what this home's drafters read; `history`: what it lends; `answer_tokens`: the last
    of `prompt_ids`, which are output.
    """
    return pb.PrefillRequest(
        request_id=request_id,
        attempt=attempt,
        prompt_ids=prompt_ids,
        first_block=first_block,
        cache_salt=salt,
        state_layers=states.layers,
        state_rows=states.rows,
        trace_parent=traceparent(),
        history=history,
        sparse_attention=sparse_message(sparse),
        answer_tokens=answer_tokens,
    )
