"""The prefill worker's gRPC face: one call per prompt, and the call is the lease.

Announced blocks stay as they are until the call ends, however it ends: the home half-closes when it
has committed everything, or cancels, or dies.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import torch

from prefill_worker.intake import Intake
from prefill_worker.loop import Progress
from transport.kv.digest import digests
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import PrefillWorkerServicer
from triptych.engine.sequence import Sequence
from triptych.errors import RequestError
from triptych.models.taps import StatesWanted
from triptych.obs.log import bind_request
from triptych.obs.metrics import WorkerMetrics
from triptych.obs.trace import Attributes, detached_span
from triptych.wire import sparse_of, tiles_message
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import EngineParts
from triptych.worker.check import check_prompt, check_sparse

log = logging.getLogger(__name__)

_PART_BYTES = 1 << 20

Context = grpc.aio.ServicerContext[pb.PrefillCall, pb.PrefillEvent]


class PrefillService(PrefillWorkerServicer):
    def __init__(
        self,
        args: WorkerArgs,
        parts: EngineParts,
        metrics: WorkerMetrics,
    ) -> None:
        self._parts = parts
        self._digest_mode = args.config.transport.digest
        self._metrics = metrics
        self._event_loop = asyncio.get_running_loop()
        self._queues: dict[Sequence, asyncio.Queue[Progress]] = {}
        self._intake: Intake | None = None

    def connect(self, intake: Intake) -> None:
        """Once, before the server starts."""
        self._intake = intake

    def emit(self, progress: Progress) -> None:
        """From the loop's thread."""
        self._event_loop.call_soon_threadsafe(self._deliver, progress)

    def _deliver(self, progress: Progress) -> None:
        waiting = self._queues.get(progress.sequence)
        if waiting is not None:  # else the call ended meanwhile
            waiting.put_nowait(progress)

    async def Prefill(
        self, calls: AsyncIterator[pb.PrefillCall], context: Context
    ) -> AsyncIterator[pb.PrefillEvent]:
        arrived = time.monotonic()
        request = (await anext(calls, pb.PrefillCall())).open
        check_prompt(
            request.prompt_ids, self._parts.model.config.vocab_size, self._parts.max_model_len
        )
        check_sparse(request, self._parts.backend.kernels, self._parts.model.config)
        wanted = _wanted(request, self._parts.model.config.num_layers)
        if request.first_block * self._parts.layout.block_tokens >= len(request.prompt_ids):
            raise RequestError("first_block lies behind the prompt", param="first_block")
        if request.answer_tokens >= len(request.prompt_ids):
            raise RequestError("answer_tokens leave no prompt", param="answer_tokens")
        sequence = Sequence(
            request_id=request.request_id,
            tokens=list(request.prompt_ids),
            root=self._parts.root(request.cache_salt),
            block_tokens=self._parts.layout.block_tokens,
            sparse=sparse_of(request),
            num_answered=request.answer_tokens,
        )
        assert self._intake is not None, "connect() comes first"
        self._queues[sequence] = asyncio.Queue()
        outcome = "cancelled"
        try:
            about = {"triptych.request_id": request.request_id}
            with (
                bind_request(request.request_id),
                detached_span("prefill", about, parent=request.trace_parent) as found,
            ):
                await self._intake.admit(sequence, wanted, request.history)
                async for event in self._events(sequence, request.first_block, arrived):
                    yield event
                found.set_attributes(prefill_attributes(sequence))
                async for _ in calls:  # until the home half-closes: it has everything
                    pass
                outcome = "finished"
        finally:
            del self._queues[sequence]
            self._intake.remove(sequence)
            self._metrics.count_tiles(sequence.tiles)
            self._metrics.requests.labels(outcome).inc()

    async def _events(
        self, sequence: Sequence, first_block: int, arrived: float
    ) -> AsyncIterator[pb.PrefillEvent]:
        while True:
            progress = await self._queues[sequence].get()
            if progress.started:
                began = sequence.first_step_at or arrived
                started = pb.PrefillStarted(
                    cached_tokens=sequence.num_cached, queue_ms=(began - arrived) * 1e3
                )
                yield pb.PrefillEvent(started=started)
            for part in _parts_of(progress.states):
                yield pb.PrefillEvent(states=pb.LayerStates(rows=part))
            if progress.last_hidden is not None:
                yield pb.PrefillEvent(done=_done(sequence, progress.last_hidden))
                return
            first = max(first_block, progress.first_block)
            if first < progress.end_block:
                yield pb.PrefillEvent(blocks=await self._announce(progress, first))

    async def _announce(self, progress: Progress, first: int) -> pb.BlocksReady:
        blocks = progress.sequence.blocks[first : progress.end_block]
        offset, length = self._parts.layout.layer_span(progress.first_layer, progress.end_layer)
        sums = await asyncio.to_thread(
            digests, self._parts.region, blocks, offset, length, self._digest_mode
        )
        return pb.BlocksReady(
            first_block=first,
            blocks=blocks,
            generations=[self._parts.pool.generation(block) for block in blocks],
            first_layer=progress.first_layer,
            end_layer=progress.end_layer,
            digests=sums,
        )


def prefill_attributes(sequence: Sequence) -> Attributes:
    """Of a prompt that is computed."""
    began, ended = sequence.first_step_at or 0.0, sequence.prompt_done_at or 0.0
    return {
        "triptych.prompt_tokens": sequence.num_prompt,
        "triptych.cached_tokens": sequence.num_cached,
        "triptych.compute_ms": (ended - began) * 1e3,
    }


def _wanted(request: pb.PrefillRequest, num_layers: int) -> StatesWanted:
    layers = tuple(request.state_layers)
    if layers != tuple(sorted(set(layers))) or any(layer >= num_layers for layer in layers):
        raise RequestError(
            f"state_layers: {list(layers)} are not ascending layers of {num_layers}; home and "
            "prefill worker must serve the same model",
            param="state_layers",
        )
    return StatesWanted(layers, request.state_rows)


def _parts_of(states: torch.Tensor | None) -> Iterator[bytes]:
    """Messages of a size that every gRPC peer takes."""
    raw = b"" if states is None else states.contiguous().view(torch.uint8).numpy().tobytes()
    for begin in range(0, len(raw), _PART_BYTES):
        yield raw[begin : begin + _PART_BYTES]


def _done(sequence: Sequence, hidden: torch.Tensor) -> pb.PrefillDone:
    began, ended = sequence.first_step_at, sequence.prompt_done_at
    assert began is not None and ended is not None
    return pb.PrefillDone(
        last_hidden=hidden.contiguous().view(torch.uint8).numpy().tobytes(),
        compute_ms=(ended - began) * 1e3,
        tiles=None if sequence.sparse is None else tiles_message(sequence.tiles),
    )
