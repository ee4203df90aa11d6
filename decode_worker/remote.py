"""One prompt prefilled by another worker: opens the call, fetches what is announced, ends the
lease.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from decode_worker.fetch import Fetched, Fetcher, NoteRung
from decode_worker.peers import Peer, PrefillStream
from decode_worker.request import RemoteStats
from transport.kv.base import KvLinkError
from transport.protos import worker_pb2 as pb
from triptych.engine.sequence import Sequence
from triptych.engine.storage import TORCH_DTYPES


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
        self._covered: dict[int, int] = {}  # block index → layers that are here
        self.stats = RemoteStats(worker=peer.worker_id)

    async def run(self, timeout_s: float, note: NoteRung) -> Tensor:
        """Returns the last hidden row [H]; every block of the prompt is then in our pool, verified.

        Raises KvLinkError or grpc.aio.AioRpcError; by then no fetch is under way any more.
        """
        call = self._peer.stub.Prefill(timeout=timeout_s)
        try:
            await call.write(pb.PrefillCall(open=self._request))
            try:
                async with asyncio.TaskGroup() as fetches:
                    done = await self._follow(call, fetches, timeout_s, note)
                    done_at = time.monotonic()
            except BaseExceptionGroup as group:
                raise _first_leaf(group) from None
            self._check_complete()
            hidden = self._hidden_row(done)
            await call.done_writing()  # we have everything: the lease may end
        except BaseException:
            call.cancel()
            raise
        self._peer.see_off(call)
        self._finish_stats(done, done_at)
        return hidden

    async def _follow(
        self,
        call: PrefillStream,
        fetches: asyncio.TaskGroup,
        timeout_s: float,
        note: NoteRung,
    ) -> pb.PrefillDone:
        while True:
            event = await call.read()
            if not isinstance(event, pb.PrefillEvent):
                raise KvLinkError(f"{self._peer.worker_id} hung up before the prompt was done")
            match event.WhichOneof("event"):
                case "started":
                    self.stats.queue_ms = event.started.queue_ms
                    self.stats.cached_tokens = event.started.cached_tokens
                case "blocks":
                    fetches.create_task(self._fetch(event.blocks, timeout_s, note))
                case "done":
                    return event.done

    async def _fetch(self, ready: pb.BlocksReady, timeout_s: float, note: NoteRung) -> None:
        end = ready.first_block + len(ready.blocks)
        targets = self._sequence.blocks[ready.first_block : end]
        if len(targets) != len(ready.blocks) or ready.first_block < self._request.first_block:
            raise KvLinkError(f"{self._peer.worker_id} announced blocks that nobody asked for")
        fetched = await self._fetcher.fetch(self._peer, ready, targets, timeout_s, note)
        self._fetched.append(fetched)
        for index in range(ready.first_block, end):
            layers = ready.end_layer - ready.first_layer
            self._covered[index] = self._covered.get(index, 0) + layers

    def _check_complete(self) -> None:
        wanted = range(self._request.first_block, len(self._sequence.blocks))
        layers = self._fetcher.layout.num_layers
        missing = [index for index in wanted if self._covered.get(index, 0) != layers]
        if missing:
            raise KvLinkError(f"{self._peer.worker_id} never announced blocks {missing}")

    def _hidden_row(self, done: pb.PrefillDone) -> Tensor:
        layout, size = self._fetcher.layout, self._fetcher.hidden_size
        if len(done.last_hidden) != size * layout.item_bytes:
            raise KvLinkError(f"{self._peer.worker_id} sent a hidden row of another size")
        return torch.frombuffer(bytearray(done.last_hidden), dtype=TORCH_DTYPES[layout.dtype])

    def _finish_stats(self, done: pb.PrefillDone, done_at: float) -> None:
        now = time.monotonic()
        self.stats.compute_ms = done.compute_ms
        self.stats.path = self._fetched[-1].path if self._fetched else ""
        self.stats.kv_bytes = sum(item.num_bytes for item in self._fetched)
        self.stats.fetch_ms = sum(item.ended_at - item.began_at for item in self._fetched) * 1e3
        hidden = sum(max(0.0, min(i.ended_at, done_at) - i.began_at) for i in self._fetched)
        self.stats.hidden_ms = hidden * 1e3
        self.stats.transfer_ms = (now - done_at) * 1e3


def _first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of several failures of one attempt the first tells enough."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def prefill_request(
    request_id: str, attempt: int, prompt_ids: Seq[int], first_block: int, salt: str
) -> pb.PrefillRequest:
    return pb.PrefillRequest(
        request_id=request_id,
        attempt=attempt,
        prompt_ids=prompt_ids,
        first_block=first_block,
        cache_salt=salt,
    )
